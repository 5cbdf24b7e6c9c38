// Reading bundle.json: each field is checked where it is read, and an error names its place.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json.hpp"

namespace rm_runtime {

/// A value of the manifest and where it stands ("graph/inputs/0"). All functions throw Error (bundle).
class Field {
public:
    Field(const Json& value, std::string place, const std::string& manifest)
        : value_(value), place_(std::move(place)), manifest_(manifest) {}

    [[noreturn]] void refuse(const std::string& why) const {
        throw Error(ErrorKind::bundle, manifest_ + ": at " + (place_.empty() ? "the top level" : place_) + ": " + why +
                                           "; export the bundle again");
    }

    /// An object that has all required keys and no others than these and the optional ones.
    const Field& object(std::initializer_list<const char*> required, std::initializer_list<const char*> optional = {}) const {
        check(value_.is_object(), "an object");
        for (const char* const key : required) {
            if (!value_.contains(key)) refuse(text::quoted(key) + " is missing");
        }
        for (const auto& [key, field] : value_.items()) {
            const auto is_key = [&name = key](const char* known) { return name == known; };
            if (std::none_of(required.begin(), required.end(), is_key) &&
                std::none_of(optional.begin(), optional.end(), is_key)) {
                refuse(shown(key) + " is not known");
            }
        }
        return *this;
    }

    [[nodiscard]] Field at(const std::string& key) const {
        if (!value_.is_object() || !value_.contains(key)) refuse(text::quoted(key) + " is missing");
        return {value_[key], place_.empty() ? key : place_ + "/" + key, manifest_};
    }

    /// The field of that key, or nothing where it is missing or null.
    [[nodiscard]] std::optional<Field> maybe(const std::string& key) const {
        if (!value_.is_object() || !value_.contains(key) || value_[key].is_null()) return std::nullopt;
        return at(key);
    }

    [[nodiscard]] std::vector<std::pair<std::string, Field>> members() const {
        check(value_.is_object(), "an object");
        std::vector<std::pair<std::string, Field>> members;
        for (const auto& [key, value] : value_.items()) {
            members.emplace_back(key, Field(value, (place_.empty() ? "" : place_ + "/") + shown_plainly(key), manifest_));
        }
        return members;
    }

    [[nodiscard]] std::vector<Field> items() const {
        check(value_.is_array(), "an array");
        std::vector<Field> items;
        for (std::size_t i = 0; i < value_.size(); ++i) {
            items.emplace_back(value_[i], place_ + "/" + std::to_string(i), manifest_);
        }
        return items;
    }

    [[nodiscard]] std::string string() const {
        check(value_.is_string(), "a string");
        return value_.get<std::string>();
    }

    [[nodiscard]] std::string one_of(std::initializer_list<const char*> choices) const {
        check(value_.is_string(), "a string");
        const auto chosen = value_.get<std::string>();
        for (const char* const choice : choices) {
            if (chosen == choice) return chosen;
        }
        refuse(shown(chosen) + " is not known");
    }

    [[nodiscard]] bool boolean() const {
        check(value_.is_boolean(), "true or false");
        return value_.get<bool>();
    }

    [[nodiscard]] std::int64_t whole(std::int64_t least) const {
        const bool fits = value_.is_number_integer() &&
                          (!value_.is_number_unsigned() ||
                           value_.get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int64_t>::max()});
        check(fits && value_.get<std::int64_t>() >= least, "a whole number of at least " + std::to_string(least));
        return value_.get<std::int64_t>();
    }

    /// A relative path whose parts are plain names: it cannot leave the bundle.
    [[nodiscard]] std::string path() const {
        const std::string name = string();
        if (!is_plain_path(name)) refuse(shown(name) + " is no plain path inside the bundle");
        return name;
    }

    [[nodiscard]] std::string sha256() const {
        const std::string hash = string();
        const bool hex = hash.size() == 64 && hash.find_first_not_of("0123456789abcdef") == std::string::npos;
        if (!hex) refuse(shown(hash) + " is no sha256");
        return hash;
    }

    [[nodiscard]] static bool is_plain_path(std::string_view path) {
        for (std::size_t start = 0; start <= path.size();) {
            const std::size_t end = std::min(path.find('/', start), path.size());
            const std::string_view part = path.substr(start, end - start);
            const bool plain = std::all_of(part.begin(), part.end(), [](char c) {
                return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
                       c == '+' || c == '-';
            });
            if (part.empty() || part == "." || part == ".." || !plain) return false;
            start = end + 1;
        }
        return true;
    }

    [[nodiscard]] const Json& json() const { return value_; }

    void check(bool holds, const std::string& expected) const {
        if (!holds) refuse(shown(value_.dump(-1, ' ', false, Json::error_handler_t::replace)) + " is not " + expected);
    }

    /// A value on one line, cut if it is long.
    [[nodiscard]] static std::string shown(const std::string& value) {
        return text::quoted(value.size() > 100 ? value.substr(0, 100) + "..." : value);
    }

private:
    const Json& value_;
    std::string place_;
    const std::string& manifest_;

    [[nodiscard]] static std::string shown_plainly(const std::string& key) {
        const std::string quoted = shown(key);
        return quoted.substr(1, quoted.size() - 2);
    }
};

}  // namespace rm_runtime
