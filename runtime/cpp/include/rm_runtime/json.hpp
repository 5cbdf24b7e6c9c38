// JSON as the Python runtime reads and writes it.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "error.hpp"
#include "text.hpp"

namespace rm_runtime {

using Json = nlohmann::json;

inline constexpr std::size_t deepest_json = 500;

/// Arrays and objects within each other at most, whether or not the rest is JSON.
[[nodiscard]] inline std::size_t depth_of(std::string_view source) {
    std::size_t depth = 0;
    std::size_t deepest = 0;
    bool in_string = false;
    for (std::size_t place = 0; place < source.size(); ++place) {
        const char character = source[place];
        if (character == '"') in_string = !in_string;
        if (in_string && character == '\\') ++place;
        if (in_string) continue;
        if (character == '[' || character == '{') deepest = std::max(deepest, ++depth);
        if ((character == ']' || character == '}') && depth > 0) --depth;
    }
    return deepest;
}

/// The value of strict JSON in UTF-8; of equal keys the last counts. Throws Error (request) that says what is wrong.
[[nodiscard]] inline Json parse_json(std::string_view source) {
    if (const auto place = text::first_invalid(source)) {
        const char* const digits = "0123456789abcdef";
        const auto byte = static_cast<unsigned char>(source[*place]);
        throw Error(ErrorKind::request, std::string("not UTF-8: byte 0x") + digits[byte >> 4] + digits[byte & 15] +
                                            " at byte " + std::to_string(*place + 1));
    }
    if (depth_of(source) > deepest_json) throw Error(ErrorKind::request, "it is nested too deeply");
    try {
        return Json::parse(source.begin(), source.end());
    } catch (const Json::out_of_range&) {
        throw Error(ErrorKind::request, "a number is out of range");
    } catch (const Json::parse_error& error) {
        const std::string message = error.what();  // "[json.exception.parse_error.101] parse error at ...: syntax error ..."
        const std::size_t reason = message.rfind(" - ");
        const std::string_view told = std::string_view(message).substr(reason == std::string::npos ? 0 : reason + 3);
        throw Error(ErrorKind::request, "not JSON: " + text::one_line(told.substr(0, 200)) + " at character " +
                                            std::to_string(error.byte));
    }
}

/// A JSON value's type as its sender calls it.
[[nodiscard]] inline std::string json_type(const Json& value) {
    if (value.is_boolean()) return "a boolean";
    if (value.is_array()) return value.empty() ? "an empty array" : "an array";
    if (value.is_string()) return "a string";
    if (value.is_object()) return "an object";
    return value.is_number() ? "a number" : "null";
}

/// The same type as Python names it, for errors that the Python runtime words so.
[[nodiscard]] inline std::string python_type(const Json& value) {
    if (value.is_boolean()) return "bool";
    if (value.is_array()) return "list";
    if (value.is_string()) return "str";
    if (value.is_object()) return "dict";
    if (value.is_null()) return "null";
    return value.is_number_float() ? "float" : "int";
}

/// The shortest decimal that reads back as the same number, in Python's form ("0.5", "1e-07"). Not for infinities.
[[nodiscard]] inline std::string number_text(double number) {
    char buffer[40];
    const auto end = std::to_chars(buffer, buffer + sizeof buffer, number, std::chars_format::scientific).ptr;
    const std::string_view shortest(buffer, static_cast<std::size_t>(end - buffer));
    const std::size_t mark = shortest.find('e');
    const bool negative = shortest[0] == '-';
    std::string digits;
    for (const char character : shortest.substr(0, mark)) {
        if (character != '-' && character != '.') digits += character;
    }
    int exponent = 0;
    const std::string_view power = shortest.substr(mark + (shortest[mark + 1] == '+' ? 2 : 1));
    std::from_chars(power.data(), power.data() + power.size(), exponent);
    const std::string sign = negative ? "-" : "";
    if (exponent < -4 || exponent >= 16) {
        const std::string size = std::to_string(std::abs(exponent));
        return sign + digits.substr(0, 1) + (digits.size() > 1 ? "." + digits.substr(1) : "") + "e" +
               (exponent < 0 ? "-" : "+") + (size.size() < 2 ? "0" : "") + size;
    }
    if (exponent < 0) return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
    const auto whole = static_cast<std::size_t>(exponent) + 1;
    if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
    return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

/// A JSON value on one line as Python's json.dumps(ensure_ascii=False) writes it; objects need their keys in order.
[[nodiscard]] inline std::string json_text(const nlohmann::ordered_json& value) {
    std::string line;
    if (value.is_object()) {
        for (const auto& [key, field] : value.items()) {
            line += (line.empty() ? "{" : ", ") + nlohmann::json(key).dump() + ": " + json_text(field);
        }
        return line.empty() ? "{}" : line + "}";
    }
    if (value.is_array()) {
        for (const auto& item : value) line += (line.empty() ? "[" : ", ") + json_text(item);
        return line.empty() ? "[]" : line + "]";
    }
    return value.is_number_float() ? number_text(value.get<double>()) : value.dump();
}

}  // namespace rm_runtime
