// Which rows begin alike, and which of them to compute as continuations of one prefix. Source: rm_runtime.shared_prefixes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>
#include <vector>

#include "tokenizer/tokenizer.hpp"

namespace rm_runtime {

inline constexpr double least_saved_share = 0.05;     // of a batch's tokens: less is not worth the second graph
inline constexpr std::size_t least_saved_tokens = 64;

using Lengths = std::vector<std::size_t>;

/// Rows that share their first `prefix` ids, at least one, computed together.
struct PrefixBatch {
    std::size_t prefix = 0;
    std::vector<std::size_t> rows;

    /// Ids this batch computes, padding included. lengths: of all rows of the request.
    [[nodiscard]] std::size_t tokens(const Lengths& lengths) const {
        std::size_t longest = 0;
        for (const std::size_t row : rows) longest = std::max(longest, lengths[row]);
        return prefix + rows.size() * std::max<std::size_t>(1, longest - std::min(longest, prefix));
    }

    /// Ids that computing the rows in full would take beyond that; 0 if it takes fewer.
    [[nodiscard]] std::size_t saved(const Lengths& lengths) const {
        const std::size_t full = tokens_in_full(lengths);
        return full - std::min(full, tokens(lengths));
    }

    /// Whether it spares enough.
    [[nodiscard]] bool pays(const Lengths& lengths) const {
        const double share = least_saved_share * static_cast<double>(tokens_in_full(lengths));
        return saved(lengths) >= least_saved_tokens && static_cast<double>(saved(lengths)) >= share;
    }

private:
    [[nodiscard]] std::size_t tokens_in_full(const Lengths& lengths) const {
        std::size_t sum = 0;
        for (const std::size_t row : rows) sum += lengths[row];
        return sum;
    }
};

/// The plan for a request's rows: every row is in a batch that shares a prefix, or is better computed in full.
class SharedPrefixPlan {
public:
    std::vector<PrefixBatch> batches;  ///< those that compute the most ids first
    std::vector<std::size_t> full;     ///< ascending

    SharedPrefixPlan(const std::vector<Ids>& rows, std::size_t batch_tokens, double max_padding) {
        Lengths lengths;
        for (const Ids& row : rows) lengths.push_back(row.size());
        std::vector<std::size_t> order(rows.size());
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::stable_sort(order.begin(), order.end(), [&](auto one, auto other) { return rows[one] < rows[other]; });
        const std::vector<Group> groups = groups_of(rows, order);
        choose(groups, order, lengths, batch_tokens, max_padding);
        std::stable_sort(batches.begin(), batches.end(), [&](const PrefixBatch& one, const PrefixBatch& other) {
            return one.tokens(lengths) > other.tokens(lengths);
        });
        std::vector<bool> shared(rows.size());
        for (const PrefixBatch& batch : batches) {
            for (const std::size_t row : batch.rows) shared[row] = true;
        }
        for (std::size_t row = 0; row < rows.size(); ++row) {
            if (!shared[row]) full.push_back(row);
        }
    }

private:
    /// Rows order[left, right), all that share `prefix` ids; children: those among them that share more.
    struct Group {
        std::size_t prefix;
        std::size_t left;
        std::size_t right;
        std::vector<std::size_t> children;
    };

    static std::size_t common(const Ids& one, const Ids& other) {
        const std::size_t shorter = std::min(one.size(), other.size());
        const auto end = one.begin() + static_cast<std::ptrdiff_t>(shorter);
        return static_cast<std::size_t>(std::mismatch(one.begin(), end, other.begin()).first - one.begin());
    }

    /// The tree of groups over sorted rows, its root first (Abouelhoda, Kurtz and Ohlebusch 2004: lcp-intervals).
    static std::vector<Group> groups_of(const std::vector<Ids>& rows, const std::vector<std::size_t>& order) {
        std::vector<Group> groups = {{0, 0, order.size(), {}}};
        std::vector<std::size_t> path = {0};
        for (std::size_t place = 0; place < order.size(); ++place) {
            const std::size_t length =
                place + 1 < order.size() ? common(rows[order[place]], rows[order[place + 1]]) : 0;
            std::size_t left = place;
            std::vector<std::size_t> closed;  // none or one: a group that waits for its parent
            while (length < groups[path.back()].prefix) {
                const std::size_t done = path.back();
                path.pop_back();
                groups[done].right = place + 1;
                left = groups[done].left;
                closed = {done};
                if (length <= groups[path.back()].prefix) {
                    groups[path.back()].children.push_back(done);
                    closed.clear();
                }
            }
            if (length > groups[path.back()].prefix) {
                path.push_back(groups.size());
                groups.push_back({length, left, left, std::move(closed)});
            }
        }
        return groups;
    }

    /// Takes the groups that spare the most tokens: long prefixes of few rows, or shorter ones of more.
    void choose(const std::vector<Group>& groups, const std::vector<std::size_t>& order, const Lengths& lengths,
                std::size_t batch_tokens, double max_padding) {
        std::vector<std::size_t> parents_first;
        for (std::vector<std::size_t> waiting = {0}; !waiting.empty();) {
            const std::size_t group = waiting.back();
            waiting.pop_back();
            parents_first.push_back(group);
            waiting.insert(waiting.end(), groups[group].children.begin(), groups[group].children.end());
        }
        std::vector<std::size_t> best(groups.size());
        std::vector<std::vector<PrefixBatch>> plans(groups.size());  // empty: its children's are as good
        for (auto group = parents_first.rbegin(); group != parents_first.rend(); ++group) {
            std::size_t of_children = 0;
            for (const std::size_t child : groups[*group].children) of_children += best[child];
            std::vector<PrefixBatch> plan = filled(groups[*group], order, lengths, batch_tokens, max_padding);
            std::size_t saved = 0;
            for (const PrefixBatch& batch : plan) saved += batch.saved(lengths);
            if (saved >= of_children && saved > 0) plans[*group] = std::move(plan);
            best[*group] = std::max(saved, of_children);
        }
        for (std::vector<std::size_t> undecided = {0}; !undecided.empty();) {
            const std::size_t group = undecided.back();
            undecided.pop_back();
            batches.insert(batches.end(), plans[group].begin(), plans[group].end());
            const std::vector<std::size_t>& children = groups[group].children;
            if (plans[group].empty()) undecided.insert(undecided.end(), children.begin(), children.end());
        }
    }

    /// The group's batches, longest rows first, without those that spare too little.
    static std::vector<PrefixBatch> filled(const Group& group, const std::vector<std::size_t>& order, const Lengths& lengths,
                                           std::size_t batch_tokens, double max_padding) {
        if (group.prefix == 0) return {};
        std::vector<std::size_t> rows(order.begin() + static_cast<std::ptrdiff_t>(group.left),
                                      order.begin() + static_cast<std::ptrdiff_t>(group.right));
        std::stable_sort(rows.begin(), rows.end(), [&](auto one, auto other) { return lengths[one] > lengths[other]; });
        std::vector<PrefixBatch> parts;
        std::size_t width = 0;
        std::size_t held = 0;
        for (const std::size_t row : rows) {
            const std::size_t own = lengths[row] - group.prefix;
            const std::size_t area = parts.empty() ? 0 : (parts.back().rows.size() + 1) * width;
            // a further batch computes the prefix once more, so that much padding is cheaper
            const double allowed = std::max(static_cast<double>(group.prefix), max_padding * static_cast<double>(area));
            const bool padding_pays = !parts.empty() && static_cast<double>(area - held - own) <= allowed;
            if (padding_pays && group.prefix + area <= batch_tokens) {
                parts.back().rows.push_back(row);
                held += own;
            } else {
                parts.push_back({group.prefix, {row}});
                width = std::max<std::size_t>(1, own);
                held = own;
            }
        }
        std::vector<PrefixBatch> batches;
        for (PrefixBatch& part : parts) {
            if (part.pays(lengths)) batches.push_back(std::move(part));
        }
        return batches;
    }
};

}  // namespace rm_runtime
