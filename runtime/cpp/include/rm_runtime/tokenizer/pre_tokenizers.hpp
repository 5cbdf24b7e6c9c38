// The pre-tokenizers of a tokenizer.json that the families' tokenizers have: text -> words.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fields.hpp"
#include "pattern.hpp"

namespace rm_runtime {

/// GPT-2's bytes as letters: what can be seen stands for itself, the other bytes follow from U+0100.
[[nodiscard]] inline const std::array<std::string, 256>& byte_letters() {
    static const std::array<std::string, 256> letters = [] {
        std::array<std::string, 256> table;
        char32_t next = 0x100;
        for (char32_t byte = 0; byte < 256; ++byte) {
            const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
            text::append(table[byte], visible ? byte : next++);
        }
        return table;
    }();
    return letters;
}

class PreTokenizer {
public:
    explicit PreTokenizer(const Json& component) {
        for_each_part(component, "pretokenizers", [this](const Json& part) { steps_.push_back(step(part)); });
    }

    /// The words of a text. first: it begins where the whole text begins.
    [[nodiscard]] std::vector<std::string> apply(std::string text, bool first) const {
        std::vector<std::string> words;
        words.push_back(std::move(text));
        for (const Step& step : steps_) {
            std::vector<std::string> parts;
            for (std::size_t i = 0; i < words.size(); ++i) step(std::move(words[i]), first && i == 0, parts);
            words = std::move(parts);
        }
        return words;
    }

private:
    using Words = std::vector<std::string>;
    using Step = std::function<void(std::string, bool, Words&)>;
    enum class Delimiter { isolated, removed, with_previous, with_next };
    std::vector<Step> steps_;

    static void split(const std::string& text, const Spans& spans, Delimiter delimiter, Words& words) {
        const auto add = [&](std::size_t start, std::size_t end) {
            if (end > start) words.push_back(text.substr(start, end - start));
        };
        std::size_t place = 0;
        for (const auto& [start, end] : spans) {
            if (delimiter == Delimiter::with_previous) {
                add(place, end);
            } else {
                add(place, start);
                if (delimiter == Delimiter::isolated) add(start, end);
            }
            place = delimiter == Delimiter::with_next ? start : end;
        }
        add(place, text.size());
    }

    static Delimiter delimiter(const std::string& name) {
        if (name == "Isolated") return Delimiter::isolated;
        if (name == "Removed") return Delimiter::removed;
        if (name == "MergedWithPrevious") return Delimiter::with_previous;
        if (name == "MergedWithNext") return Delimiter::with_next;
        refuse_component("splitting behaviour", name);
    }

    static Step step(const Json& part) {
        const std::string type = type_of(part);
        if (type == "Split") {
            if (flag_of(part, "invert")) refuse_component("pre-tokenizer", "inverted Split");
            const auto pattern = std::make_shared<Pattern>(field_of(part, "pattern"));
            const Delimiter behaviour = delimiter(string_of(part, "behavior"));
            return [pattern, behaviour](const std::string& text, bool, Words& words) {
                split(text, pattern->matches(text), behaviour, words);
            };
        }
        if (type == "ByteLevel") return byte_level(part);
        if (type == "Metaspace") return metaspace(part);
        refuse_component("pre-tokenizer", type);
    }

    static Step byte_level(const Json& part) {
        const bool prefix = flag_of(part, "add_prefix_space", true);
        // GPT-2's words
        const auto pattern = flag_of(part, "use_regex", true)
                                 ? std::make_shared<Pattern>(std::string("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|"
                                                                         " ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"))
                                 : nullptr;
        return [prefix, pattern](std::string text, bool, Words& words) {
            if (prefix && (text.empty() || text[0] != ' ')) text.insert(0, 1, ' ');
            Words found;
            split(text, pattern ? pattern->matches(text) : Spans(), Delimiter::isolated, found);
            for (const std::string& word : found) {
                std::string& letters = words.emplace_back();
                letters.reserve(2 * word.size());
                for (const char byte : word) letters += byte_letters()[static_cast<unsigned char>(byte)];
            }
        };
    }

    static Step metaspace(const Json& part) {
        const std::string mark = string_of(part, "replacement");
        const std::string scheme = part.contains("prepend_scheme") ? string_of(part, "prepend_scheme") : "always";
        if (scheme != "always" && scheme != "first" && scheme != "never") refuse_component("prepend_scheme", scheme);
        if (mark.empty()) refuse_tokenizer("its Metaspace replacement is empty");
        const bool splits = flag_of(part, "split", true);
        return [mark, scheme, splits](const std::string& source, bool first, Words& words) {
            std::string text = text::replaced(source, " ", mark);
            const bool prepends = scheme == "always" || (scheme == "first" && first);
            if (prepends && text.compare(0, mark.size(), mark) != 0) text.insert(0, mark);
            Spans spans;
            for (std::size_t at = 0; splits && (at = text.find(mark, at)) != std::string::npos; at += mark.size()) {
                spans.emplace_back(at, at + mark.size());
            }
            split(text, spans, Delimiter::with_next, words);
        };
    }
};

}  // namespace rm_runtime
