// Many rows of ids -> few well-filled batches. Source: rm_runtime.batching.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "tokenizer/tokenizer.hpp"

namespace rm_runtime {

inline constexpr std::size_t default_batch_tokens = 4096;
inline constexpr std::size_t encoder_batch_tokens = 1024;  // their attention leaves the cache in larger batches
inline constexpr double max_padding = 0.1;                 // of a batch's ids
inline constexpr std::size_t free_padding = 64;            // ids that any batch may hold for nothing

/// Row numbers grouped into batches: longest first, each within the token budget; a longer row is a batch of its own.
[[nodiscard]] inline std::vector<std::vector<std::size_t>> plan_batches(const std::vector<std::size_t>& lengths,
                                                                        std::size_t batch_tokens) {
    std::vector<std::size_t> order(lengths.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t one, std::size_t other) {
        return lengths[one] > lengths[other];
    });
    std::vector<std::vector<std::size_t>> batches;
    std::size_t width = 0;
    std::size_t held = 0;
    for (const std::size_t row : order) {
        const std::size_t area = batches.empty() ? 0 : (batches.back().size() + 1) * width;
        const std::size_t padding = batches.empty() ? 0 : area - held - lengths[row];
        const double allowed = std::max(static_cast<double>(free_padding), max_padding * static_cast<double>(area));
        if (!batches.empty() && area <= batch_tokens && static_cast<double>(padding) <= allowed) {
            batches.back().push_back(row);
            held += lengths[row];
        } else {
            batches.push_back({row});
            width = held = lengths[row];
        }
    }
    return batches;
}

/// input_ids and attention_mask, int64 [rows, width], padded on the right.
struct PaddedBatch {
    std::size_t rows = 0;
    std::size_t width = 1;
    Ids input_ids;
    Ids attention_mask;

    /// prefix: how many ids of each row are left out, at its beginning.
    PaddedBatch(const std::vector<Ids>& all, const std::vector<std::size_t>& chosen, std::size_t prefix,
                std::int64_t pad_token_id)
        : rows(chosen.size()) {
        for (const std::size_t row : chosen) width = std::max(width, all[row].size() - prefix);
        input_ids.assign(rows * width, pad_token_id);
        attention_mask.assign(rows * width, 0);
        for (std::size_t place = 0; place < rows; ++place) {
            const Ids& ids = all[chosen[place]];
            const auto start = static_cast<std::ptrdiff_t>(place * width);
            std::copy(ids.begin() + static_cast<std::ptrdiff_t>(prefix), ids.end(), input_ids.begin() + start);
            std::fill_n(attention_mask.begin() + start, ids.size() - prefix, 1);
        }
    }
};

/// Outputs of a graph by name: one vector of floats a row.
using Outputs = std::map<std::string, std::vector<std::vector<float>>>;

}  // namespace rm_runtime
