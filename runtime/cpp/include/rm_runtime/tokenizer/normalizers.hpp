// The normalizers of a tokenizer.json that the families' tokenizers have: text -> text.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "../unicode.hpp"
#include "charsmap.hpp"
#include "fields.hpp"
#include "pattern.hpp"

namespace rm_runtime {

class Normalizer {
public:
    explicit Normalizer(const Json& component) {
        for_each_part(component, "normalizers", [this](const Json& part) { steps_.push_back(step(part)); });
    }

    [[nodiscard]] std::string apply(std::string_view text) const {
        std::string result(text);
        for (const Step& step : steps_) result = step(result);
        return result;
    }

private:
    using Step = std::function<std::string(const std::string&)>;
    std::vector<Step> steps_;

    static Step step(const Json& part) {
        const std::string type = type_of(part);
        if (type == "NFC") return [](const std::string& text) { return unicode::nfc(text); };
        if (type == "Prepend") {
            return [before = string_of(part, "prepend")](const std::string& text) {
                return text.empty() ? text : before + text;
            };
        }
        if (type == "Strip") {
            const bool left = flag_of(part, "strip_left");
            const bool right = flag_of(part, "strip_right");
            return [left, right](const std::string& text) {
                return std::string(text::stripped(text, text::is_white_space, left, right));
            };
        }
        if (type == "Precompiled") {
            const auto map = std::make_shared<Charsmap>(string_of(part, "precompiled_charsmap"));
            return [map](const std::string& text) { return map->apply(text); };
        }
        if (type == "Replace") {
            const auto pattern = std::make_shared<Pattern>(field_of(part, "pattern"));
            return [pattern, with = string_of(part, "content")](const std::string& text) {
                std::string result;
                std::size_t place = 0;
                for (const auto& [start, end] : pattern->matches(text)) {
                    result.append(text, place, start - place).append(with);
                    place = end;
                }
                return result.append(text, place, std::string::npos);
            };
        }
        refuse_component("normalizer", type);
    }
};

}  // namespace rm_runtime
