// What this library asks of a tokenizer. Plug in another one through LoadOptions::tokenizer.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace rm_runtime {

using Ids = std::vector<std::int64_t>;

class Tokenizer {
public:
    Tokenizer() = default;
    Tokenizer(const Tokenizer&) = delete;
    Tokenizer& operator=(const Tokenizer&) = delete;
    virtual ~Tokenizer() = default;

    /// Ids of valid UTF-8: special tokens in the text are found, none are added around it.
    /// Must be safe to call from several threads if the model is.
    [[nodiscard]] virtual Ids encode(std::string_view text) const = 0;
};

/// Makes a tokenizer from the text of a tokenizer.json. Called once more, with special tokens renamed, if a request asks
/// for special-token text as plain text.
using TokenizerFactory = std::function<std::shared_ptr<const Tokenizer>(const std::string& tokenizer_json)>;

}  // namespace rm_runtime
