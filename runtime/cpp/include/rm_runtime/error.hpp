// The one exception of this library.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

namespace rm_runtime {

/// Whose fault an Error is; the names are those of the Python package.
enum class ErrorKind {
    bundle,      ///< a bundle is damaged, incomplete, of an unknown format, or needs what this library has not
    engine,      ///< ONNX Runtime cannot load a graph, or failed while running it
    request,     ///< a request is malformed
    prompt,      ///< a conversation cannot be rendered or tokenised
    unscorable,  ///< the graph gave NaN for a row
};

/// What went wrong, in one line: what, where, what to do.
class Error : public std::runtime_error {
public:
    Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}

    [[nodiscard]] ErrorKind kind() const noexcept { return kind_; }

private:
    ErrorKind kind_;
};

/// What became of one row: its result, or why there is none. One bad row never fails its neighbours.
template <class Value>
using Result = std::variant<Value, Error>;

/// The error of a row, or nullptr.
template <class Value>
[[nodiscard]] const Error* error_of(const Result<Value>& result) {
    return std::get_if<Error>(&result);
}

/// The value of a row. Throws its Error if it has none.
template <class Value>
[[nodiscard]] const Value& value_of(const Result<Value>& result) {
    if (const Error* error = error_of(result)) throw *error;
    return std::get<Value>(result);
}

}  // namespace rm_runtime
