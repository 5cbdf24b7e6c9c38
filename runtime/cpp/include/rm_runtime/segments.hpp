// (source, candidates) -> rows of ids for PairRM: three [CLS] ... [SEP] segments. Source: rm_runtime.segments.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "prompts.hpp"

namespace rm_runtime {

/// One tokenised text, [CLS] and [SEP] included. cut: how many ids of the text were lost; prefix_places: where a
/// candidate's prefix stands, which differs between first and second candidate.
struct Segment {
    Ids ids;
    std::size_t cut = 0;
    std::vector<std::size_t> prefix_places;
};

/// A source with its candidates, all within their budgets.
struct Segments {
    Segment source;
    std::vector<Segment> candidates;
    std::int64_t prefix_ids[2] = {};
    std::string side;

    /// The row that asks how much better candidate `first` is than candidate `second`.
    [[nodiscard]] Ids row(std::size_t first, std::size_t second) const {
        Ids row = source.ids;
        const std::size_t chosen[] = {first, second};
        for (std::size_t place = 0; place < 2; ++place) {
            const Segment& candidate = candidates[chosen[place]];
            const std::size_t start = row.size();
            row.insert(row.end(), candidate.ids.begin(), candidate.ids.end());
            for (const std::size_t at : candidate.prefix_places) row[start + at] = prefix_ids[place];
        }
        return row;
    }

    /// What was cut from the source, and from that candidate.
    [[nodiscard]] Truncations truncation(std::size_t candidate) const {
        Truncations cuts;
        if (source.cut > 0) cuts.push_back({source.cut, side, "source"});
        if (candidates[candidate].cut > 0) cuts.push_back({candidates[candidate].cut, side, "candidate"});
        return cuts;
    }
};

/// Groups of texts -> Segments by a SegmentsPrompt. Safe to share between threads.
class SegmentsPrompter {
public:
    /// Throws Error (bundle) if the tokenizer does not know the prefixes or does not put them where the graph looks.
    SegmentsPrompter(SegmentsPrompt spec, std::shared_ptr<const BundleTokenizer> tokenizer)
        : spec_(std::move(spec)), tokenizer_(std::move(tokenizer)),
          candidate_text_(spec_.candidate_prefix.value_or(spec_.candidate1_prefix)), candidate_id_(token(candidate_text_)),
          prefix_ids_{token(spec_.candidate1_prefix), token(spec_.candidate2_prefix)},
          control_text_(tokenizer_, {spec_.source_prefix, spec_.candidate1_prefix, spec_.candidate2_prefix, candidate_text_}) {
        const AddedIds& added = tokenizer_->added_ids();
        if (added.before.size() != 1 || added.after.size() != 1) {
            throw Error(ErrorKind::bundle, "the bundle's tokenizer does not put one token before and one after a text");
        }
        for (const std::string& prefix : {spec_.source_prefix, candidate_text_}) {
            if (tokenizer_->encode(prefix + "a").front() != token(prefix)) {
                throw Error(ErrorKind::bundle,
                            "the bundle's tokenizer does not know the prefix " + text::quoted(prefix) + " as one token");
            }
        }
        if (std::min(spec_.source_max_length, spec_.candidate_max_length) < 4) {
            throw Error(ErrorKind::bundle, "the prompt spec's limits leave no room for a source and its candidates");
        }
    }

    /// The group alone, as a batch of one. Throws Error (prompt) that names the text that cannot be encoded.
    [[nodiscard]] Segments encode(const std::string& source, const std::vector<std::string>& candidates, TooLong too_long,
                                  SpecialText special_text) const {
        Segments group;
        group.side = spec_.cuts_left ? "left" : "right";
        std::copy(std::begin(prefix_ids_), std::end(prefix_ids_), std::begin(group.prefix_ids));
        group.source = segment(spec_.source_prefix, source, "the source", spec_.source_max_length, too_long, special_text);
        const std::size_t length = group.source.ids.size();
        const std::size_t budget =
            spec_.budget_of_row ? (spec_.source_max_length + 2 * spec_.candidate_max_length - length) / 2
                                : spec_.candidate_max_length + (spec_.source_max_length - length) / 2;
        for (std::size_t i = 0; i < candidates.size(); ++i) {
            const std::string place = "candidate " + std::to_string(i);
            group.candidates.push_back(segment(candidate_text_, candidates[i], place, budget, too_long, special_text));
        }
        return group;
    }

private:
    SegmentsPrompt spec_;
    std::shared_ptr<const BundleTokenizer> tokenizer_;
    std::string candidate_text_;
    std::int64_t candidate_id_;
    std::int64_t prefix_ids_[2];
    ControlText control_text_;

    [[nodiscard]] std::int64_t token(const std::string& prefix) const {
        const auto id = tokenizer_->id_of_token(prefix);
        if (!id) {
            throw Error(ErrorKind::bundle,
                        "the bundle's tokenizer lacks the prefix " + text::quoted(prefix) + "; export the bundle again");
        }
        return *id;
    }

    [[nodiscard]] Ids ids_of(const std::string& prefix, std::string text, const std::string& place,
                             SpecialText special_text) const {
        check_text(text, place);
        const auto typed = special_text == SpecialText::token ? std::nullopt : control_text_.find(text);
        if (typed && special_text == SpecialText::error) {
            throw Error(ErrorKind::prompt, place + " holds the text of the special token " + text::quoted(*typed));
        }
        if (typed) {
            const MaskedTexts masked = control_text_.mask({text});
            return control_text_.encode_as_text(prefix + masked.texts[0], masked);
        }
        for (const std::string& literal : spec_.replace) text = text::replaced(text, literal, " ");
        return tokenizer_->encode(prefix + text);
    }

    /// The text's ids without what is beyond the limit; the prefix and the added ids stay.
    [[nodiscard]] Segment segment(const std::string& prefix, const std::string& text, const std::string& place,
                                  std::size_t limit, TooLong too_long, SpecialText special_text) const {
        Ids ids = ids_of(prefix, text, place, special_text);
        const std::size_t length = ids.size() + 2;
        Segment segment;
        if (length > limit) {
            if (too_long == TooLong::error) {
                throw Error(ErrorKind::prompt, place + " has " + std::to_string(length) + " tokens, the limit is " +
                                                   std::to_string(limit) + "; shorten it");
            }
            segment.cut = length - limit;
            const auto lost = static_cast<std::ptrdiff_t>(std::min(segment.cut, ids.size() - 1));
            if (spec_.cuts_left) {
                ids.erase(ids.begin() + 1, ids.begin() + 1 + lost);
            } else {
                ids.erase(ids.end() - lost, ids.end());
            }
        }
        segment.ids = tokenizer_->added_ids().before;
        segment.ids.insert(segment.ids.end(), ids.begin(), ids.end());
        segment.ids.push_back(tokenizer_->added_ids().after.front());
        for (std::size_t i = 0; i < segment.ids.size(); ++i) {
            const bool is_prefix = spec_.candidate_prefix ? segment.ids[i] == candidate_id_ : i == 1;
            if (is_prefix) segment.prefix_places.push_back(i);
        }
        return segment;
    }
};

}  // namespace rm_runtime
