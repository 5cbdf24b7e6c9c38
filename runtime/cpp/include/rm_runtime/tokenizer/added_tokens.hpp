// Added tokens: texts that are one id whatever the model would make of them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fields.hpp"
#include "prefix_index.hpp"

namespace rm_runtime {

/// One of tokenizer.json's "added_tokens". normalized: it is looked for in the normalised text.
struct AddedToken {
    std::int64_t id = 0;
    std::string content;
    bool special = false;
    bool normalized = false;
    bool left_spaces = false;
    bool right_spaces = false;
};

/// The tokens of a tokenizer.json, in its order.
[[nodiscard]] inline std::vector<AddedToken> added_tokens(const Json& document) {
    std::vector<AddedToken> tokens;
    if (!document.contains("added_tokens") || document["added_tokens"].is_null()) return tokens;
    if (!document["added_tokens"].is_array()) refuse_tokenizer("added_tokens is not an array");
    for (const Json& token : document["added_tokens"]) {
        if (flag_of(token, "single_word")) refuse_component("added token of whole words", string_of(token, "content"));
        tokens.push_back({id_of(field_of(token, "id")), string_of(token, "content"), flag_of(token, "special"),
                          flag_of(token, "normalized"), flag_of(token, "lstrip"), flag_of(token, "rstrip")});
    }
    return tokens;
}

/// A part of a text: a token, or (id -1) what lies between tokens.
struct TextPart {
    std::int64_t id;
    std::string_view text;
};

/// Finds tokens in texts: the leftmost first, of several there the longest.
class TokenFinder {
public:
    /// Pairs of a text to look for and the token it is.
    explicit TokenFinder(std::vector<std::pair<std::string, AddedToken>> tokens) {
        std::vector<PrefixIndex::Entry> entries;
        for (auto& [form, token] : tokens) {
            entries.emplace_back(form, static_cast<std::int64_t>(tokens_.size()));
            tokens_.push_back(std::move(token));
        }
        index_ = std::make_unique<PrefixIndex>(std::move(entries));
    }

    [[nodiscard]] std::vector<TextPart> split(std::string_view text) const {
        std::vector<TextPart> parts;
        const auto add = [&](std::int64_t id, std::size_t start, std::size_t end) {
            if (end > start) parts.push_back({id, text.substr(start, end - start)});
        };
        std::size_t taken = 0;
        for (std::size_t place = 0; place < text.size();) {
            std::size_t length = 0;
            std::int64_t found = -1;
            index_->for_each_prefix(text.substr(place), [&](std::size_t size, std::int64_t token) {
                length = size;
                found = token;
            });
            if (found < 0) {
                ++place;
                continue;
            }
            const AddedToken& token = tokens_[static_cast<std::size_t>(found)];
            std::size_t start = place;
            std::size_t end = place + length;
            place = end;
            if (token.left_spaces) {
                const std::string_view before = text.substr(0, start);
                start = std::max(taken, text::stripped(before, text::is_white_space, false, true).size());
            }
            if (token.right_spaces) {
                const std::string_view after = text.substr(end);
                end = text.size() - text::stripped(after, text::is_white_space, true, false).size();
            }
            add(-1, taken, start);
            add(token.id, start, end);
            taken = end;
        }
        add(-1, taken, text.size());
        return parts;
    }

private:
    std::vector<AddedToken> tokens_;
    std::unique_ptr<PrefixIndex> index_;
};

}  // namespace rm_runtime
