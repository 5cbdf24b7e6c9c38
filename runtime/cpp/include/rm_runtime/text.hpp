// UTF-8 as Python's str sees it: code points, white space, lengths.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace rm_runtime::text {

/// Bytes of the code point that begins with this byte of valid UTF-8.
[[nodiscard]] inline std::size_t width_at(std::string_view text, std::size_t place) {
    const auto lead = static_cast<unsigned char>(text[place]);
    return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

/// The code point at a byte of valid UTF-8.
[[nodiscard]] inline char32_t code_at(std::string_view text, std::size_t place) {
    const std::size_t width = width_at(text, place);
    const auto lead = static_cast<unsigned char>(text[place]);
    char32_t code = width == 1 ? lead : lead & (0x7FU >> width);
    for (std::size_t i = 1; i < width; ++i) code = code << 6 | (static_cast<unsigned char>(text[place + i]) & 0x3FU);
    return code;
}

inline void append(std::string& text, char32_t code) {
    const auto byte = [&text](char32_t value) { text += static_cast<char>(static_cast<unsigned char>(value)); };
    if (code < 0x80) {
        byte(code);
    } else if (code < 0x800) {
        byte(0xC0 | code >> 6);
        byte(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        byte(0xE0 | code >> 12);
        byte(0x80 | (code >> 6 & 0x3F));
        byte(0x80 | (code & 0x3F));
    } else {
        byte(0xF0 | code >> 18);
        byte(0x80 | (code >> 12 & 0x3F));
        byte(0x80 | (code >> 6 & 0x3F));
        byte(0x80 | (code & 0x3F));
    }
}

/// Where the first byte stands that is not UTF-8 (overlong forms, surrogates and codes above U+10FFFF are not).
[[nodiscard]] inline std::optional<std::size_t> first_invalid(std::string_view text) {
    const auto byte = [text](std::size_t place) {
        return place < text.size() ? static_cast<unsigned char>(text[place]) : 0U;
    };
    for (std::size_t place = 0; place < text.size();) {
        const unsigned lead = byte(place);
        const std::size_t width = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
        if (width == 0) return place;
        const unsigned least = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
        const unsigned most = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
        for (std::size_t i = 1; i < width; ++i) {
            const unsigned next = byte(place + i);
            if (next < (i == 1 ? least : 0x80) || next > (i == 1 ? most : 0xBF)) return place;
        }
        place += width;
    }
    return std::nullopt;
}

[[nodiscard]] inline bool is_ascii(std::string_view text) {
    for (const char byte : text) {
        if (static_cast<unsigned char>(byte) >= 0x80) return false;
    }
    return true;
}

/// Unicode's White_Space property.
[[nodiscard]] inline bool is_white_space(char32_t code) {
    return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F ||
           code == 0x205F || code == 0x3000;
}

/// What Python's str.strip takes away: White_Space and the four separators U+001C to U+001F.
[[nodiscard]] inline bool is_python_space(char32_t code) {
    return is_white_space(code) || (code >= 0x1C && code <= 0x1F);
}

/// `text` without the code points at its ends for which `drops` holds.
template <class Predicate>
[[nodiscard]] std::string_view stripped(std::string_view text, Predicate drops, bool left = true, bool right = true) {
    while (left && !text.empty() && drops(code_at(text, 0))) text.remove_prefix(width_at(text, 0));
    while (right && !text.empty()) {
        std::size_t last = text.size() - 1;
        while ((static_cast<unsigned char>(text[last]) & 0xC0U) == 0x80) --last;
        if (!drops(code_at(text, last))) break;
        text.remove_suffix(text.size() - last);
    }
    return text;
}

[[nodiscard]] inline std::string replaced(std::string_view text, std::string_view what, std::string_view with) {
    std::string result;
    std::size_t place = 0;
    for (std::size_t found; (found = text.find(what, place)) != std::string_view::npos; place = found + what.size()) {
        result.append(text.substr(place, found - place)).append(with);
    }
    return result.append(text.substr(place));
}

/// The text on one line: runs of white space become one space, none at the ends.
[[nodiscard]] inline std::string one_line(std::string_view text) {
    std::string line;
    for (const char character : text) {
        const bool space = is_python_space(static_cast<unsigned char>(character));
        if (!space) line += character;
        if (space && !line.empty() && line.back() != ' ') line += ' ';
    }
    if (!line.empty() && line.back() == ' ') line.pop_back();
    return line;
}

/// The text as Python's repr() shows it, which error messages quote: 'single quotes', escapes for what cannot be seen.
[[nodiscard]] inline std::string quoted(std::string_view text) {
    const bool twice = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
    const char quote = twice ? '"' : '\'';
    std::string result(1, quote);
    for (const char character : text) {
        const auto byte = static_cast<unsigned char>(character);
        if (character == quote || character == '\\') {
            result += '\\';
            result += character;
        } else if (character == '\n' || character == '\r' || character == '\t') {
            result += '\\';
            result += character == '\n' ? 'n' : character == '\r' ? 'r' : 't';
        } else if (byte < 0x20 || byte == 0x7F) {
            const char* const digits = "0123456789abcdef";
            result += "\\x";
            result += digits[byte >> 4];
            result += digits[byte & 15];
        } else {
            result += character;
        }
    }
    return result + quote;
}

}  // namespace rm_runtime::text
