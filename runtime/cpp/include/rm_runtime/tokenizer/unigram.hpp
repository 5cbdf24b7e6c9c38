// Unigram language model (Kudo 2018): word -> ids, by the split of the highest total score.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "fields.hpp"
#include "prefix_index.hpp"
#include "tokenizer.hpp"

namespace rm_runtime {

class Unigram {
public:
    /// From the "model" of a tokenizer.json.
    explicit Unigram(const Json& model) {
        const Json& vocabulary = field_of(model, "vocab");
        if (!vocabulary.is_array() || vocabulary.empty()) refuse_tokenizer("vocab is " + json_type(vocabulary));
        std::vector<PrefixIndex::Entry> pieces;
        double least = std::numeric_limits<double>::infinity();
        for (const Json& piece : vocabulary) {
            if (!piece.is_array() || piece.size() != 2 || !piece[0].is_string() || !piece[1].is_number()) {
                refuse_tokenizer("a piece of its vocabulary is no pair of text and score");
            }
            const auto id = static_cast<std::int64_t>(scores_.size());
            ids_.insert_or_assign(piece[0].get<std::string>(), id);
            pieces.emplace_back(piece[0].get<std::string>(), id);
            scores_.push_back(piece[1].get<double>());
            least = std::min(least, scores_.back());
        }
        unknown_score_ = least - 10;  // sentencepiece's penalty of an unknown letter
        if (model.contains("unk_id") && !model["unk_id"].is_null()) unknown_ = id_of(model["unk_id"]);
        if (unknown_ && *unknown_ >= static_cast<std::int64_t>(scores_.size())) {
            refuse_tokenizer("its unk_id " + std::to_string(*unknown_) + " is beyond its vocabulary");
        }
        if (flag_of(model, "byte_fallback")) refuse_component("Unigram option", "byte_fallback");
        index_ = std::make_unique<PrefixIndex>(std::move(pieces));
    }

    [[nodiscard]] std::optional<std::int64_t> id(std::string_view piece) const {
        const auto found = ids_.find(std::string(piece));
        return found == ids_.end() ? std::nullopt : std::optional(found->second);
    }

    [[nodiscard]] std::size_t size() const { return scores_.size(); }

    /// Appends the ids of a word. Throws Error (prompt) for an unknown letter if the model has no id for it.
    void encode(const std::string& word, Ids& ids) const {
        const std::vector<Node> best = best_ways(word);
        std::vector<std::string> pieces;  // from the end of the word
        bool after_unknown = false;
        for (std::size_t end = word.size(); end > 0; end = best[end].start) {
            const std::string piece = word.substr(best[end].start, end - best[end].start);
            const bool unknown = best[end].id == unknown_;
            if (unknown && after_unknown) {
                pieces.back().insert(0, piece);
            } else {
                pieces.push_back(piece);
            }
            after_unknown = unknown;
        }
        for (auto piece = pieces.rbegin(); piece != pieces.rend(); ++piece) {
            ids.push_back(id(*piece).value_or(unknown_.value_or(0)));
        }
    }

private:
    /// The best split that ends at a byte: its total score, its last piece and where that starts.
    struct Node {
        double score = 0;
        std::size_t start = none;
        std::optional<std::int64_t> id;
    };
    static constexpr std::size_t none = std::numeric_limits<std::size_t>::max();

    std::unordered_map<std::string, std::int64_t> ids_;
    std::vector<double> scores_;
    std::unique_ptr<PrefixIndex> index_;
    double unknown_score_ = 0;
    std::optional<std::int64_t> unknown_;

    [[nodiscard]] std::vector<Node> best_ways(const std::string& word) const {
        std::vector<Node> best(word.size() + 1);
        for (std::size_t start = 0; start < word.size();) {
            const std::size_t width = text::width_at(word, start);
            const double until_here = best[start].score;
            const auto offer = [&](std::size_t length, std::int64_t id, double score) {
                Node& node = best[start + length];
                if (node.start == none || until_here + score > node.score) node = {until_here + score, start, id};
            };
            bool letter_known = false;
            index_->for_each_prefix(std::string_view(word).substr(start), [&](std::size_t length, std::int64_t id) {
                offer(length, id, scores_[static_cast<std::size_t>(id)]);
                letter_known = letter_known || length == width;
            });
            if (!letter_known) {
                if (!unknown_) throw Error(ErrorKind::prompt, "the tokenizer failed: it has no id for unknown letters");
                offer(width, *unknown_, unknown_score_);
            }
            start += width;
        }
        return best;
    }
};

}  // namespace rm_runtime
