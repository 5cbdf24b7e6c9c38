// Which of many texts does a text begin with? A sorted list, narrowed byte by byte.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rm_runtime {

class PrefixIndex {
public:
    using Entry = std::pair<std::string, std::int64_t>;

    /// Keys and their values; of equal keys the last counts, empty keys are left out.
    explicit PrefixIndex(std::vector<Entry> entries) : entries_(std::move(entries)) {
        const auto by_key = [](const Entry& one, const Entry& other) { return one.first < other.first; };
        std::stable_sort(entries_.begin(), entries_.end(), by_key);
        std::vector<Entry> unique;
        unique.reserve(entries_.size());
        for (Entry& entry : entries_) {
            if (entry.first.empty()) continue;
            if (!unique.empty() && unique.back().first == entry.first) unique.pop_back();
            unique.push_back(std::move(entry));
        }
        entries_ = std::move(unique);
        std::size_t place = 0;
        for (std::size_t byte = 0; byte < 256; ++byte) {
            first_[byte] = place;
            while (place < entries_.size() && byte_at(place, 0) == byte) ++place;
        }
        first_[256] = place;
    }

    /// Calls `take(key length, value)` for every key that `text` begins with, shortest first.
    template <class Take>
    void for_each_prefix(std::string_view text, Take take) const {
        if (text.empty()) return;
        const auto start = static_cast<unsigned char>(text[0]);
        std::size_t low = first_[start];
        std::size_t high = first_[std::size_t{start} + 1];
        for (std::size_t depth = 1; low < high; ++depth) {  // all of [low, high) share `depth` bytes with the text
            if (entries_[low].first.size() == depth) {
                take(depth, entries_[low].second);
                ++low;
            }
            if (depth == text.size()) return;
            const auto byte = static_cast<unsigned char>(text[depth]);
            low = boundary(low, high, depth, byte);
            high = boundary(low, high, depth, std::size_t{byte} + 1);
        }
    }

private:
    std::vector<Entry> entries_;
    std::size_t first_[257] = {};

    [[nodiscard]] std::size_t byte_at(std::size_t place, std::size_t depth) const {
        return static_cast<unsigned char>(entries_[place].first[depth]);
    }

    /// The first of [low, high) whose byte at `depth` is at least `byte`.
    [[nodiscard]] std::size_t boundary(std::size_t low, std::size_t high, std::size_t depth, std::size_t byte) const {
        while (low < high) {
            const std::size_t middle = low + (high - low) / 2;
            if (byte_at(middle, depth) < byte) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low;
    }
};

}  // namespace rm_runtime
