// Reading a tokenizer.json: a field that is missing, of another type or of an unknown value is an error that names it.
#pragma once

#include <string>
#include <string_view>

#include "../json.hpp"

namespace rm_runtime {

[[noreturn]] inline void refuse_tokenizer(const std::string& why) { throw Error(ErrorKind::bundle, why); }

/// The field, which must be there.
[[nodiscard]] inline const Json& field_of(const Json& object, const char* name) {
    if (!object.is_object() || !object.contains(name)) refuse_tokenizer(std::string("it has no ") + name);
    return object[name];
}

[[nodiscard]] inline std::string string_of(const Json& object, const char* name) {
    const Json& value = field_of(object, name);
    if (!value.is_string()) refuse_tokenizer(std::string(name) + " is " + json_type(value) + ", not a string");
    return value.get<std::string>();
}

/// A field that may be missing or null, which is false.
[[nodiscard]] inline bool flag_of(const Json& object, const char* name, bool otherwise = false) {
    if (!object.contains(name) || object[name].is_null()) return otherwise;
    if (!object[name].is_boolean()) refuse_tokenizer(std::string(name) + " is " + json_type(object[name]) + ", not a boolean");
    return object[name].get<bool>();
}

[[nodiscard]] inline std::int64_t id_of(const Json& value) {
    if (!value.is_number_integer() || value.get<std::int64_t>() < 0 || value.get<std::int64_t>() > 0x7FFFFFFF) {
        refuse_tokenizer("an id is " + value.dump() + ", not a whole number from 0 to 2^31");
    }
    return value.get<std::int64_t>();
}

/// A component's "type".
[[nodiscard]] inline std::string type_of(const Json& component) { return string_of(component, "type"); }

/// For components that this library does not have.
[[noreturn]] inline void refuse_component(const std::string& kind, const std::string& type) {
    refuse_tokenizer("its " + kind + " " + text::quoted(type) +
                     " is not one that this library knows; plug in a tokenizer through LoadOptions::tokenizer");
}

/// Calls `read` with each part of a component: itself, or the members of a Sequence. Null has none.
template <class Read>
void for_each_part(const Json& component, const char* members, Read read, int depth = 0) {
    if (component.is_null()) return;
    if (depth > 8) refuse_tokenizer("its sequences are nested too deeply");
    if (type_of(component) != "Sequence") return read(component);
    const Json& parts = field_of(component, members);
    if (!parts.is_array()) refuse_tokenizer(std::string(members) + " is " + json_type(parts) + ", not an array");
    for (const Json& part : parts) for_each_part(part, members, read, depth + 1);
}

}  // namespace rm_runtime
