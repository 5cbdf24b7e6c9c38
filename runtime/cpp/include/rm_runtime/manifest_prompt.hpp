// The manifest's "prompt" -> PromptSpec.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "manifest_fields.hpp"
#include "prompt_spec.hpp"

namespace rm_runtime {

[[nodiscard]] inline TemplatePieces read_pieces(const Field& field) {
    field.object({"turns", "content", "end", "roles", "skips_empty_last"});
    TemplatePieces pieces;
    for (const Field& item : field.at("turns").items()) {
        item.object({"after", "role", "text"}, {"last", "refused"});
        Turn turn;
        if (const auto after = item.maybe("after")) turn.after = after->string();
        turn.role = item.at("role").string();
        turn.text = item.at("text").string();
        if (const auto last = item.maybe("last")) turn.last = last->boolean();
        if (const auto refused = item.maybe("refused")) turn.refused = refused->string();
        pieces.turns.push_back(std::move(turn));
    }
    for (const auto& [role, rule] : field.at("content").members()) {
        pieces.strips[role] = rule.one_of({"keep", "strip"}) == "strip";
    }
    for (const auto& [role, text] : field.at("end").members()) pieces.end[role] = text.string();
    pieces.by_place = field.at("roles").one_of({"named", "parity"}) == "parity";
    pieces.skips_empty_last = field.at("skips_empty_last").boolean();
    return pieces;
}

[[nodiscard]] inline ChatPrompt read_chat_prompt(const Field& field) {
    field.object({"template"}, {"kind", "variables", "date", "remove_bos_text", "add_special_tokens", "bos_token_id",
                                "bos_count", "max_length", "truncation_side", "required_suffix", "pieces"});
    ChatPrompt prompt;
    prompt.source = field.at("template").string();
    if (const auto variables = field.maybe("variables")) {
        for (const auto& [name, value] : variables->members()) {
            if (name == "bos_token" && !value.json().is_null()) prompt.bos_text = value.string();
            if (value.json().is_string()) prompt.variables.push_back(value.string());
        }
    }
    if (const auto flag = field.maybe("remove_bos_text")) prompt.remove_bos_text = flag->boolean();
    if (const auto flag = field.maybe("add_special_tokens")) prompt.add_special_tokens = flag->boolean();
    if (const auto id = field.maybe("bos_token_id")) prompt.bos_token_id = id->whole(0);
    if (const auto count = field.maybe("bos_count")) prompt.bos_count = count->whole(0);
    if (const auto limit = field.maybe("max_length")) prompt.max_length = static_cast<std::size_t>(limit->whole(1));
    if (const auto side = field.maybe("truncation_side")) prompt.cuts_left = side->one_of({"left", "right"}) == "left";
    if (const auto suffix = field.maybe("required_suffix")) {
        for (const Field& id : suffix->items()) prompt.required_suffix.push_back(id.whole(0));
    }
    if (const auto pieces = field.maybe("pieces")) prompt.pieces = read_pieces(*pieces);
    return prompt;
}

/// A str.format text with {context}, {a} and {b}, each once; as (literal, field after it).
[[nodiscard]] inline std::vector<std::pair<std::string, std::string>> read_message_parts(const Field& field) {
    const std::string message = field.string();
    std::vector<std::pair<std::string, std::string>> parts(1);
    std::vector<std::string> fields;
    for (std::size_t place = 0; place < message.size(); ++place) {
        const char character = message[place];
        const bool doubled = place + 1 < message.size() && message[place + 1] == character;
        if (character != '{' && character != '}') {
            parts.back().first += character;
        } else if (doubled) {
            parts.back().first += character;
            ++place;
        } else {
            const std::size_t end = character == '{' ? message.find('}', place) : std::string::npos;
            if (end == std::string::npos) field.refuse("it is not a format string");
            parts.back().second = message.substr(place + 1, end - place - 1);
            fields.push_back(parts.back().second);
            parts.emplace_back();
            place = end;
        }
    }
    std::sort(fields.begin(), fields.end());
    if (fields != std::vector<std::string>{"a", "b", "context"}) {
        field.refuse("it must hold {context}, {a} and {b} once");
    }
    return parts;
}

[[nodiscard]] inline PairChatPrompt read_pair_chat_prompt(const Field& field) {
    field.object({"kind", "context_template", "message", "chat"}, {"context_pieces"});
    PairChatPrompt prompt;
    prompt.context_source = field.at("context_template").string();
    if (const auto pieces = field.maybe("context_pieces")) prompt.context_pieces = read_pieces(*pieces);
    prompt.message = field.at("message").string();
    prompt.message_parts = read_message_parts(field.at("message"));
    prompt.chat = read_chat_prompt(field.at("chat"));
    return prompt;
}

[[nodiscard]] inline SegmentsPrompt read_segments_prompt(const Field& field) {
    field.object({"kind"}, {"source_prefix", "candidate1_prefix", "candidate2_prefix", "source_max_length",
                            "candidate_max_length", "replace", "budget", "truncation_side", "candidate_prefix"});
    SegmentsPrompt prompt;
    if (const auto text = field.maybe("source_prefix")) prompt.source_prefix = text->string();
    if (const auto text = field.maybe("candidate1_prefix")) prompt.candidate1_prefix = text->string();
    if (const auto text = field.maybe("candidate2_prefix")) prompt.candidate2_prefix = text->string();
    if (const auto limit = field.maybe("source_max_length")) {
        prompt.source_max_length = static_cast<std::size_t>(limit->whole(1));
    }
    if (const auto limit = field.maybe("candidate_max_length")) {
        prompt.candidate_max_length = static_cast<std::size_t>(limit->whole(1));
    }
    if (const auto texts = field.maybe("replace")) {
        prompt.replace.clear();
        for (const Field& text : texts->items()) {
            prompt.replace.push_back(text.string());
            if (prompt.replace.back().empty()) text.refuse("it is empty");
        }
    }
    if (const auto budget = field.maybe("budget")) prompt.budget_of_row = budget->one_of({"batch", "row"}) == "row";
    if (const auto side = field.maybe("truncation_side")) prompt.cuts_left = side->one_of({"left", "right"}) == "left";
    if (field.json().contains("candidate_prefix")) {
        const auto text = field.maybe("candidate_prefix");
        prompt.candidate_prefix = text ? std::optional(text->string()) : std::nullopt;
    }
    return prompt;
}

[[nodiscard]] inline PromptSpec read_prompt(const Field& field) {
    field.check(field.json().is_object(), "an object");
    const std::string kind = field.at("kind").string();
    if (kind == "chat") return read_chat_prompt(field);
    if (kind == "pair-chat") return read_pair_chat_prompt(field);
    if (kind == "segments") return read_segments_prompt(field);
    field.refuse("unknown prompt kind " + Field::shown(kind) + " (known: chat, pair-chat, segments)");
}

}  // namespace rm_runtime
