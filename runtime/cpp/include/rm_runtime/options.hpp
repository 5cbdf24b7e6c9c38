// What a caller may choose.
#pragma once

#include <cstddef>

#include "tokenizer/tokenizer.hpp"

namespace rm_runtime {

/// A prompt that is too long: cut on the bundle's side and said so in its result, or refused.
enum class TooLong { cut, error };

/// Special-token text typed in a message ("<|eot_id|>"): that token, as in the reference; plain text; or refused.
enum class SpecialText { token, text, error };

struct LoadOptions {
    int threads = 0;               ///< of ONNX Runtime; 0: as many as this process may run on
    bool verify = false;           ///< compare every file's sha256, which reads the whole bundle
    std::size_t batch_tokens = 0;  ///< ids a batch may hold, padding included; 0: 4096, 1024 for encoders
    bool share_prefixes = true;    ///< compute what rows have in common once, in a second graph with memory of its own
    TooLong too_long = TooLong::cut;
    SpecialText special_text = SpecialText::token;
    TokenizerFactory tokenizer;    ///< makes the tokenizer; empty: JsonTokenizer
};

}  // namespace rm_runtime
