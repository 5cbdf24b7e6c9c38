// A bundle's tokenizer.json with the tokenizer that reads texts by it: what prompts need to know besides ids.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "added_tokens.hpp"
#include "fields.hpp"
#include "json_tokenizer.hpp"
#include "tokenizer.hpp"

namespace rm_runtime {

/// Ids that the post-processor puts before and after a text's own.
struct AddedIds {
    Ids before;
    Ids after;
};

class BundleTokenizer {
public:
    /// json: the text of a tokenizer.json. factory: makes the tokenizer; empty: JsonTokenizer. where: what errors call it.
    BundleTokenizer(std::string json, const TokenizerFactory& factory, const std::string& where) try
        : factory_(factory), json_(std::move(json)) {
        const Json read = document();
        tokens_ = added_tokens(read);
        normalizer_ = read.is_object() ? read.value("normalizer", Json()) : Json();
        read_post_processor(read);
        tokenizer_ = factory ? factory(json_) : std::make_shared<JsonTokenizer>(read);
    } catch (const std::exception& error) {
        throw Error(ErrorKind::bundle, where + " cannot be read: " + text::one_line(error.what()));
    }

    [[nodiscard]] Ids encode(std::string_view text) const { return tokenizer_->encode(text); }
    [[nodiscard]] const AddedIds& added_ids() const { return added_ids_; }
    [[nodiscard]] const std::vector<AddedToken>& tokens() const { return tokens_; }
    [[nodiscard]] const Json& normalizer() const { return normalizer_; }

    /// The tokenizer.json, read again: parsed it takes many times its size, so that it is not held.
    [[nodiscard]] Json document() const { return parse_json(json_); }

    /// The same tokenizer made from another document.
    [[nodiscard]] std::shared_ptr<const Tokenizer> made_from(const Json& document) const {
        return factory_ ? factory_(document.dump()) : std::make_shared<JsonTokenizer>(document);
    }

    [[nodiscard]] std::optional<std::int64_t> id_of_token(std::string_view token) const {
        for (const AddedToken& added : tokens_) {
            if (added.content == token) return added.id;
        }
        const Json vocabulary = vocabulary_of(document());
        if (vocabulary.is_object()) {
            const auto found = vocabulary.find(std::string(token));
            return found == vocabulary.end() ? std::nullopt : std::optional(found->get<std::int64_t>());
        }
        for (std::size_t id = 0; id < vocabulary.size(); ++id) {
            if (vocabulary[id][0] == token) return static_cast<std::int64_t>(id);
        }
        return std::nullopt;
    }

    [[nodiscard]] std::optional<std::string> token_of_id(std::int64_t id) const {
        for (const AddedToken& added : tokens_) {
            if (added.id == id) return added.content;
        }
        const Json vocabulary = vocabulary_of(document());
        if (vocabulary.is_array()) {
            if (id < 0 || static_cast<std::size_t>(id) >= vocabulary.size()) return std::nullopt;
            return vocabulary[static_cast<std::size_t>(id)][0].get<std::string>();
        }
        for (const auto& [piece, number] : vocabulary.items()) {
            if (number == id) return piece;
        }
        return std::nullopt;
    }

private:
    TokenizerFactory factory_;
    std::string json_;
    Json normalizer_;
    std::vector<AddedToken> tokens_;
    AddedIds added_ids_;
    std::shared_ptr<const Tokenizer> tokenizer_;

    static Json vocabulary_of(const Json& document) { return field_of(field_of(document, "model"), "vocab"); }

    void read_post_processor(const Json& document) {
        if (!document.contains("post_processor")) return;
        bool seen = false;
        for_each_part(document["post_processor"], "processors", [&](const Json& part) {
            const std::string type = type_of(part);
            if (type == "ByteLevel") return;  // moves offsets, not ids
            if (type != "TemplateProcessing" || seen) refuse_component("post-processor", type);
            seen = true;
            read_template(part);
        });
    }

    void read_template(const Json& part) {
        const Json& special = field_of(part, "special_tokens");
        bool after_text = false;
        for (const Json& item : field_of(part, "single")) {
            if (item.contains("Sequence")) {
                if (after_text) refuse_component("post-processor", "TemplateProcessing of two texts");
                after_text = true;
                continue;
            }
            const std::string name = string_of(field_of(item, "SpecialToken"), "id");
            for (const Json& id : field_of(field_of(special, name.c_str()), "ids")) {
                (after_text ? added_ids_.after : added_ids_.before).push_back(rm_runtime::id_of(id));
            }
        }
        if (!after_text) refuse_component("post-processor", "TemplateProcessing without the text");
    }
};

}  // namespace rm_runtime
