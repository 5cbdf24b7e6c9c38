// The regular expressions of tokenizers, with PCRE2 and the tables of `tokenizers`.
#pragma once

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "error.hpp"
#include "unicode.hpp"

namespace rm_runtime {

/// A compiled regular expression. Safe to share between threads.
///
/// PCRE2 never sees the text's own letters: each code point outside ASCII is shown to it as one example of its class, so
/// that its age of Unicode does not matter. Expressions that could tell the difference are refused, and so are those that
/// Oniguruma, the engine behind `tokenizers`, reads in another way.
class Regex {
public:
    /// Throws Error (bundle) for an expression that is not known to mean the same here.
    explicit Regex(const std::string& expression) {
        check(expression);
        int error = 0;
        PCRE2_SIZE place = 0;
        const auto* const pattern = reinterpret_cast<PCRE2_SPTR>(expression.c_str());
        code_.reset(pcre2_compile(pattern, expression.size(), PCRE2_UTF | PCRE2_UCP, &error, &place, nullptr));
        if (!code_) refuse(expression, "cannot be compiled");
        pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // without it matching is slower, and right
    }

    /// First byte and byte after the end of every match in valid UTF-8, left to right; empty matches are left out.
    [[nodiscard]] std::vector<std::pair<std::size_t, std::size_t>> matches(std::string_view text) const {
        std::vector<std::size_t> places;  // in `text`, of each byte of what PCRE2 sees; empty where both are the same
        std::string shown;
        if (!text::is_ascii(text)) {
            shown = examples(text, places);
            text = shown;
        }
        const auto at = [&places](std::size_t place) { return places.empty() ? place : places[place]; };
        const std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> found(
            pcre2_match_data_create(1, nullptr), &pcre2_match_data_free);
        if (!found) throw std::bad_alloc();
        std::vector<std::pair<std::size_t, std::size_t>> result;
        const auto* const subject = reinterpret_cast<PCRE2_SPTR>(text.data());
        for (std::size_t place = 0; place < text.size();) {
            const int count =
                pcre2_match(code_.get(), subject, text.size(), place, PCRE2_NO_UTF_CHECK, found.get(), nullptr);
            if (count == PCRE2_ERROR_NOMATCH) break;
            if (count < 0) throw Error(ErrorKind::prompt, "the tokenizer failed: its expression is too hard for this text");
            const PCRE2_SIZE* const span = pcre2_get_ovector_pointer(found.get());
            if (span[1] > span[0]) result.emplace_back(at(span[0]), at(span[1]));
            place = span[1];
            if (span[1] == span[0] && place < text.size()) place += text::width_at(text, place);
            if (span[1] == text.size()) break;
        }
        return result;
    }

private:
    struct FreeCode {
        void operator()(pcre2_code* code) const { pcre2_code_free(code); }
    };

    std::unique_ptr<pcre2_code, FreeCode> code_;

    [[noreturn]] static void refuse(const std::string& expression, const std::string& why) {
        throw Error(ErrorKind::bundle, "its regular expression " + text::quoted(expression) + " " + why);
    }

    static void check(const std::string& expression) {
        bool in_class = false;
        for (std::size_t place = 0; place < expression.size(); ++place) {
            const char character = expression[place];
            const std::string_view rest = std::string_view(expression).substr(place);
            const auto starts = [rest](std::string_view with) { return rest.substr(0, with.size()) == with; };
            if (static_cast<unsigned char>(character) >= 0x80) refuse(expression, "holds letters outside ASCII");
            if (character == '\\') {
                const bool property = rest.size() > 4 && (rest[1] == 'p' || rest[1] == 'P');
                if (property && rest[2] == '{' && rest[4] == '}' && (rest[3] == 'L' || rest[3] == 'M' || rest[3] == 'N')) {
                    place += 4;
                } else if (rest.size() > 1 && std::string_view("sSrnt.*+?()[]{}|/\\'-^$").find(rest[1]) != rest.npos) {
                    place += 1;
                } else {
                    refuse(expression, "has an escape that is not known here");
                }
            } else if (in_class) {
                if (character == '[' || starts("&&")) refuse(expression, "has a class within a class");
                in_class = character != ']';
            } else if (character == '[') {
                in_class = true;
                if (starts("[^")) ++place;
                if (place + 1 < expression.size() && expression[place + 1] == ']') refuse(expression, "has an empty class");
            } else if (character == '(') {
                if (starts("(?") && !starts("(?:") && !starts("(?i:") && !starts("(?!") && !starts("(?=")) {
                    refuse(expression, "has a group that is not known here");
                }
            } else if (character == '^' || character == '$' || starts("}+") || starts("{,") || starts("(*")) {
                refuse(expression, "has a sign that is not known here");
            }
        }
    }

    /// Long s and the Kelvin sign stay: without regard to case they are s and k.
    static std::string examples(std::string_view text, std::vector<std::size_t>& places) {
        std::string shown;
        shown.reserve(text.size() + 1);
        places.reserve(text.size() + 1);
        for (std::size_t place = 0; place < text.size(); place += text::width_at(text, place)) {
            const char32_t code = text::code_at(text, place);
            const char32_t example = code < 0x80 || code == 0x17F || code == 0x212A ? code
                                     : unicode::contains(unicode::letters, code)    ? 0xE9
                                     : text::is_white_space(code)                   ? 0xA0
                                     : unicode::contains(unicode::numbers, code)    ? 0xB2
                                     : unicode::contains(unicode::marks, code)      ? 0x300
                                                                                    : 0xA7;
            text::append(shown, example);
            places.resize(shown.size(), place);
        }
        places.push_back(text.size());
        return shown;
    }
};

}  // namespace rm_runtime
