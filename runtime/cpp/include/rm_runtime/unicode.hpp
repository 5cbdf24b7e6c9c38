// Unicode as the package `tokenizers` knows it: classes of letters, composition, grapheme clusters.
#pragma once

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <new>
#include <string>
#include <string_view>

#include "text.hpp"
#include "unicode_tables.hpp"

namespace rm_runtime::unicode {

template <std::size_t Size>
[[nodiscard]] bool contains(const CodeRange (&table)[Size], char32_t code) {
    const auto* const after = std::upper_bound(
        std::begin(table), std::end(table), code, [](char32_t value, const CodeRange& range) { return value < range.first; });
    return after != std::begin(table) && code <= std::prev(after)->last;
}

/// Normalisation form C. A code point newer than the tables is left alone, and nothing moves across it.
[[nodiscard]] inline std::string nfc(std::string_view text) {
    if (text::is_ascii(text)) return std::string(text);
    std::string result;
    for (std::size_t place = 0; place < text.size();) {
        std::size_t end = place;
        while (end < text.size() && contains(composing, text::code_at(text, end))) end += text::width_at(text, end);
        if (end == place) {
            end += text::width_at(text, place);
            result.append(text.substr(place, end - place));
        } else {
            utf8proc_uint8_t* composed = nullptr;
            const auto* const run = reinterpret_cast<const utf8proc_uint8_t*>(text.data() + place);
            const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
            const utf8proc_ssize_t size =
                utf8proc_map(run, static_cast<utf8proc_ssize_t>(end - place), &composed, options);
            const std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owner(composed, &std::free);
            if (size < 0) throw std::bad_alloc();  // the only way to fail on valid UTF-8
            result.append(reinterpret_cast<const char*>(composed), static_cast<std::size_t>(size));
        }
        place = end;
    }
    return result;
}

/// Where the grapheme cluster that begins at `start` ends. Exact where it matters to sentencepiece's normaliser: clusters
/// of less than six bytes. Longer ones (flags, joined emoji, Hangul in letters) may come out in pieces.
[[nodiscard]] inline std::size_t cluster_end(std::string_view text, std::size_t start) {
    std::size_t place = start;
    const auto code = [&] { return text::code_at(text, place); };
    const auto step = [&] { place += text::width_at(text, place); };
    if (text[place] == '\r' && place + 1 < text.size() && text[place + 1] == '\n') return place + 2;
    while (place < text.size() && contains(prepending, code())) step();
    if (place < text.size() && (code() == 0 || contains(standing_alone, code()))) {
        if (place == start) step();
        return place;
    }
    if (place < text.size()) step();
    while (place < text.size() && contains(joining, code())) step();
    return place;
}

}  // namespace rm_runtime::unicode
