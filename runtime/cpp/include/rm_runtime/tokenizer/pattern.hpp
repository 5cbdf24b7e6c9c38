// The patterns of Split and Replace: a literal text or a regular expression.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../regex.hpp"
#include "fields.hpp"

namespace rm_runtime {

using Spans = std::vector<std::pair<std::size_t, std::size_t>>;

class Pattern {
public:
    /// From {"String": ...} or {"Regex": ...}.
    explicit Pattern(const Json& pattern) {
        if (pattern.is_object() && pattern.contains("Regex")) {
            regex_ = std::make_unique<Regex>(string_of(pattern, "Regex"));
        } else {
            literal_ = string_of(pattern, "String");
            if (literal_.empty()) refuse_tokenizer("it has an empty pattern");
        }
    }

    explicit Pattern(const std::string& expression) : regex_(std::make_unique<Regex>(expression)) {}

    /// First byte and byte after the end of every match, left to right.
    [[nodiscard]] Spans matches(std::string_view text) const {
        if (regex_) return regex_->matches(text);
        Spans spans;
        std::size_t place = 0;
        while ((place = text.find(literal_, place)) != std::string_view::npos) {
            spans.emplace_back(place, place + literal_.size());
            place += literal_.size();
        }
        return spans;
    }

private:
    std::string literal_;
    std::unique_ptr<Regex> regex_;
};

}  // namespace rm_runtime
