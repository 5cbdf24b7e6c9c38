// What scoring returns.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace rm_runtime {

/// What a prompt lost to the length limit. part: "conversation", or PairRM's "source" and "candidate".
struct Truncation {
    std::size_t tokens = 0;
    std::string side;
    std::string part = "conversation";

    [[nodiscard]] bool operator==(const Truncation& other) const {
        return tokens == other.tokens && side == other.side && part == other.part;
    }
};

using Truncations = std::vector<Truncation>;

/// Values by objective name, in the model's order.
using NamedValues = std::vector<std::pair<std::string, double>>;

/// The score of one conversation; a family fills what it has.
struct Score {
    double score = 0;         ///< unbounded; only its order means something
    std::size_t tokens = 0;   ///< ids that the graph was given
    Truncations truncation;   ///< empty: nothing was cut
    NamedValues rewards;      ///< armorm: 19 objectives; dpa-rm: 10, on a scale of 0 to 100
    NamedValues gating;       ///< armorm
    NamedValues coefficients; ///< armorm: gating @ T^T; the sum of rewards * coefficients is the score
    std::vector<double> helpsteer;  ///< armorm, dpa-rm: the five HelpSteer attributes on their own scale of 0 to 4
    std::vector<double> logits;     ///< scalar with several labels
};

/// Several answers to one prompt, in the order they were given.
struct Ranking {
    std::vector<int> ranks;             ///< 1 = best; equal scores share the better rank, the next is skipped
    std::vector<double> scores;         ///< higher is better; their unit is the family's own
    std::vector<Truncations> truncation;

    [[nodiscard]] static Ranking from_scores(std::vector<double> scores, std::vector<Truncations> truncation = {}) {
        Ranking ranking;
        for (const double score : scores) {
            int rank = 1;
            for (const double other : scores) rank += other > score ? 1 : 0;
            ranking.ranks.push_back(rank);
        }
        ranking.scores = std::move(scores);
        ranking.truncation = std::move(truncation);
        return ranking;
    }
};

/// Two answers compared by the pairwise preference model, asked in both orders.
struct Comparison {
    double probability = 0;             ///< that the first answer is the better one: the mean over both orders
    double order_probabilities[2] = {}; ///< the same with the first answer first, and second
    double logits[2][2] = {};           ///< next-token logits of "A" and "B" of both prompts, as the model saw them
    Truncations truncation;
};

}  // namespace rm_runtime
