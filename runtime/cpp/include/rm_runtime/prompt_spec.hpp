// How a family turns a conversation into ids: the manifest's "prompt".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "template_pieces.hpp"

namespace rm_runtime {

/// One conversation -> one row of ids. See rm_runtime.prompt_spec.ChatPrompt.
struct ChatPrompt {
    std::string source;                  ///< Jinja; not rendered here, searched for control tokens
    std::vector<std::string> variables;  ///< texts the template writes; searched, too
    std::optional<std::string> bos_text;
    std::optional<TemplatePieces> pieces;
    bool remove_bos_text = false;
    bool add_special_tokens = false;
    std::optional<std::int64_t> bos_token_id;
    std::int64_t bos_count = 0;
    std::size_t max_length = 4096;
    bool cuts_left = false;
    std::vector<std::int64_t> required_suffix;
};

/// (context, answer A, answer B) -> one row of ids: pair-pm's single user message.
struct PairChatPrompt {
    std::string context_source;
    std::optional<TemplatePieces> context_pieces;
    std::string message;
    std::vector<std::pair<std::string, std::string>> message_parts;  ///< (literal, field after it)
    ChatPrompt chat;
};

/// (source, candidate 1, candidate 2) -> one row of ids: PairRM's three segments.
struct SegmentsPrompt {
    std::string source_prefix = "<|source|>";
    std::string candidate1_prefix = "<|candidate1|>";
    std::string candidate2_prefix = "<|candidate2|>";
    std::size_t source_max_length = 1224;
    std::size_t candidate_max_length = 412;
    std::vector<std::string> replace = {"[SEP]"};
    bool budget_of_row = false;
    bool cuts_left = false;
    std::optional<std::string> candidate_prefix = "<|candidate|>";
};

using PromptSpec = std::variant<ChatPrompt, PairChatPrompt, SegmentsPrompt>;

}  // namespace rm_runtime
