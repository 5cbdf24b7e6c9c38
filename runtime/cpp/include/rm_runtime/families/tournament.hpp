// Who meets whom when answers can only be compared in pairs. Source: rm_runtime.tournament.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace rm_runtime {

/// A knock-out in input order: n - 1 comparisons. An answer's score is the number of rounds it survived, a skipped one
/// included; the two finalists add their probability in the final. A single answer scores 1.
class KnockOut {
public:
    explicit KnockOut(std::size_t answers) : scores_(answers, answers > 1 ? 0.0 : 1.0) {
        for (std::size_t answer = 0; answer < answers; ++answer) alive_.push_back(answer);
    }

    /// Pairs of answers that can be compared now; empty: the scores are final.
    [[nodiscard]] std::vector<std::pair<std::size_t, std::size_t>> matches() const {
        std::vector<std::pair<std::size_t, std::size_t>> pairs;
        if (alive_.size() < 2) return pairs;
        std::size_t next_round = 1;  // the largest power of two below the number alive
        while (next_round * 2 < alive_.size()) next_round *= 2;
        for (std::size_t match = 0; match < alive_.size() - next_round; ++match) {
            pairs.emplace_back(alive_[2 * match], alive_[2 * match + 1]);
        }
        return pairs;
    }

    /// probabilities: for each of `matches`, that its first answer is the better; a tie is won by the earlier answer.
    void play(const std::vector<double>& probabilities) {
        const auto pairs = matches();
        if (alive_.size() == 2) {
            scores_[pairs[0].first] += probabilities[0];
            scores_[pairs[0].second] += 1 - probabilities[0];
            alive_.clear();
            return;
        }
        std::vector<std::size_t> winners;
        for (std::size_t i = 0; i < pairs.size(); ++i) {
            winners.push_back(probabilities[i] >= 0.5 ? pairs[i].first : pairs[i].second);
        }
        winners.insert(winners.end(), alive_.begin() + static_cast<std::ptrdiff_t>(2 * pairs.size()), alive_.end());
        alive_ = std::move(winners);
        for (const std::size_t survivor : alive_) scores_[survivor] += 1;
    }

    [[nodiscard]] const std::vector<double>& scores() const { return scores_; }

private:
    std::vector<double> scores_;
    std::vector<std::size_t> alive_;
};

}  // namespace rm_runtime
