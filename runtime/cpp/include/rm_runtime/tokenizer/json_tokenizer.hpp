// tokenizer.json, as the package `tokenizers` reads it, for the components that the families' tokenizers have.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "added_tokens.hpp"
#include "bpe.hpp"
#include "normalizers.hpp"
#include "pre_tokenizers.hpp"
#include "tokenizer.hpp"
#include "unigram.hpp"

namespace rm_runtime {

/// The tokenizer that a bundle gets unless another one is plugged in. Ids are those of the package `tokenizers`: a
/// component that would need more than this knows is refused when it is made.
class JsonTokenizer final : public Tokenizer {
public:
    /// From a parsed tokenizer.json. Throws Error (bundle) that names what is damaged or not known.
    explicit JsonTokenizer(const Json& document)
        : normalizer_(component(document, "normalizer")),
          pre_tokenizer_(component(document, "pre_tokenizer")),
          model_(model(field_of(document, "model"))) {
        std::vector<std::pair<std::string, AddedToken>> as_written;
        std::vector<std::pair<std::string, AddedToken>> normalized;
        auto next = static_cast<std::int64_t>(std::visit([](const auto& model) { return model.size(); }, model_));
        for (const AddedToken& token : added_tokens(document)) {
            const auto in_model = std::visit([&](const auto& model) { return model.id(token.content); }, model_);
            if (token.id != in_model.value_or(next)) {
                refuse_tokenizer("its added token " + text::quoted(token.content) + " has the id " +
                                 std::to_string(token.id) + ", by its place it is " +
                                 std::to_string(in_model.value_or(next)));
            }
            if (!in_model) ++next;
            if (token.normalized) {
                normalized.emplace_back(normalizer_.apply(token.content), token);
            } else {
                as_written.emplace_back(token.content, token);
            }
        }
        as_written_ = std::make_unique<TokenFinder>(std::move(as_written));
        normalized_ = std::make_unique<TokenFinder>(std::move(normalized));
    }

    [[nodiscard]] Ids encode(std::string_view text) const override {
        Ids ids;
        for (const TextPart& outer : as_written_->split(text)) {
            if (outer.id >= 0) {
                ids.push_back(outer.id);
                continue;
            }
            const std::string normal = normalizer_.apply(outer.text);
            for (const TextPart& inner : normalized_->split(normal)) {
                if (inner.id >= 0) {
                    ids.push_back(inner.id);
                    continue;
                }
                const bool first = outer.text.data() == text.data() && inner.text.data() == normal.data();
                for (const std::string& word : pre_tokenizer_.apply(std::string(inner.text), first)) {
                    std::visit([&](const auto& model) { model.encode(word, ids); }, model_);
                }
            }
        }
        return ids;
    }

private:
    using Model = std::variant<Bpe, Unigram>;

    Normalizer normalizer_;
    PreTokenizer pre_tokenizer_;
    Model model_;
    std::unique_ptr<TokenFinder> as_written_;
    std::unique_ptr<TokenFinder> normalized_;

    static const Json& component(const Json& document, const char* name) {
        static const Json missing;
        return document.is_object() && document.contains(name) ? document[name] : missing;
    }

    static Model model(const Json& model) {
        if (!model.is_object()) refuse_tokenizer("its model is " + json_type(model) + ", not an object");
        const std::string type = type_of(model);
        if (type == "BPE") return Model(std::in_place_type<Bpe>, model);
        if (type == "Unigram") return Model(std::in_place_type<Unigram>, model);
        refuse_component("model", type);
    }
};

}  // namespace rm_runtime
