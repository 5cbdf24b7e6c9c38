// sentencepiece's normalisation map, as `tokenizers` applies it: by grapheme clusters.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "../unicode.hpp"
#include "fields.hpp"

namespace rm_runtime {

/// The map is a double array (J. Aoe 1989, in the layout of darts-clone) over UTF-8, and the texts its values point at.
class Charsmap {
public:
    /// From the base64 of tokenizer.json.
    explicit Charsmap(const std::string& base64) {
        const std::string bytes = decoded(base64);
        const std::uint32_t size = bytes.size() < 4 ? 0 : unit_at(bytes, 0);
        if (size == 0 || size % 4 != 0 || size > bytes.size() - 4) refuse_tokenizer("its normalisation map is damaged");
        for (std::size_t place = 4; place < 4 + std::size_t{size}; place += 4) units_.push_back(unit_at(bytes, place));
        texts_ = bytes.substr(4 + std::size_t{size});
        if (text::first_invalid(texts_)) refuse_tokenizer("its normalisation map is damaged");
    }

    /// A cluster of less than six bytes is looked up whole (its first letters may answer for it), else letter by letter.
    [[nodiscard]] std::string apply(std::string_view text) const {
        std::string result;
        result.reserve(text.size());
        for (std::size_t place = 0; place < text.size();) {
            const std::size_t end = unicode::cluster_end(text, place);
            const std::string_view cluster = text.substr(place, end - place);
            if (const auto whole = cluster.size() < 6 ? found(cluster) : std::nullopt) {
                result.append(*whole);
            } else {
                for (std::size_t at = 0; at < cluster.size(); at += text::width_at(cluster, at)) {
                    const std::string_view letter = cluster.substr(at, text::width_at(cluster, at));
                    result.append(found(letter).value_or(letter));
                }
            }
            place = end;
        }
        return result;
    }

private:
    std::vector<std::uint32_t> units_;
    std::string texts_;

    /// What the shortest beginning of `key` that the map knows becomes.
    [[nodiscard]] std::optional<std::string_view> found(std::string_view key) const {
        std::size_t node = offset(units_[0]);
        for (const char character : key) {
            const auto byte = static_cast<unsigned char>(character);
            node ^= byte;
            if (byte == 0 || node >= units_.size() || (units_[node] & 0x800000FFU) != byte) return std::nullopt;
            const bool has_value = (units_[node] >> 8 & 1U) != 0;
            node ^= offset(units_[node]);
            if (!has_value) continue;
            if (node >= units_.size()) return std::nullopt;
            const std::size_t start = units_[node] & 0x7FFFFFFFU;
            if (start > texts_.size()) return std::nullopt;
            const std::size_t end = texts_.find('\0', start);
            return std::string_view(texts_).substr(start, end == std::string::npos ? end : end - start);
        }
        return std::nullopt;
    }

    static std::size_t offset(std::uint32_t unit) { return std::size_t{unit >> 10} << ((unit & 0x200U) >> 6); }

    static std::uint32_t unit_at(const std::string& bytes, std::size_t place) {
        std::uint32_t unit = 0;
        for (std::size_t i = 4; i-- > 0;) unit = unit << 8 | static_cast<unsigned char>(bytes[place + i]);
        return unit;
    }

    static std::string decoded(const std::string& base64) {
        const std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        std::string bytes;
        std::uint32_t bits = 0;
        unsigned held = 0;
        for (const char character : text::stripped(base64, [](char32_t code) { return code == '='; }, false)) {
            const std::size_t digit = digits.find(character);
            if (digit == std::string_view::npos) refuse_tokenizer("its normalisation map is not base64");
            bits = (bits << 6 | static_cast<std::uint32_t>(digit)) & 0xFFFFFU;
            held += 6;
            if (held >= 8) {
                held -= 8;
                bytes += static_cast<char>(bits >> held & 0xFFU);
            }
        }
        return bytes;
    }
};

}  // namespace rm_runtime
