// Conversation -> prompt (token ids): rendered from the manifest's pieces, guarded, tokenised, cut.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "error.hpp"
#include "options.hpp"
#include "prompt_spec.hpp"
#include "results.hpp"
#include "special_text.hpp"
#include "tokenizer/bundle_tokenizer.hpp"

namespace rm_runtime {

/// One row for the graph, and what was cut from it.
struct Prompt {
    Ids ids;
    Truncations truncation;
};

/// Throws Error (prompt) unless `text` is UTF-8. where: what the error calls it.
inline void check_text(std::string_view text, const std::string& where) {
    if (const auto place = text::first_invalid(text)) {
        throw Error(ErrorKind::prompt, where + " is not UTF-8 at byte " + std::to_string(*place) + "; send valid Unicode");
    }
}

/// Throws Error (prompt) for an empty conversation and for text that is not UTF-8.
inline void check_conversation(const Messages& messages) {
    if (messages.empty()) throw Error(ErrorKind::prompt, "the conversation is empty; it needs at least one message");
    for (std::size_t place = 0; place < messages.size(); ++place) {
        check_text(messages[place].role, "the role of message " + std::to_string(place));
        check_text(messages[place].content, "the content of message " + std::to_string(place));
    }
}

/// A row before rendering: the users' texts, what to call each in an error, and what renders such texts.
struct Draft {
    std::vector<std::string> texts;
    std::vector<std::string> places;
    std::function<std::string(const std::vector<std::string>&)> render;
};

/// Conversations -> prompts by a ChatPrompt. Safe to share between threads.
class ChatPrompter {
public:
    /// probe: a conversation that is encoded once; Error (bundle) if spec and tokenizer do not belong together.
    ChatPrompter(ChatPrompt spec, std::shared_ptr<const BundleTokenizer> tokenizer, const Messages& probe,
                 const std::vector<std::string>& written_by = {})
        : spec_(std::move(spec)), tokenizer_(std::move(tokenizer)), bos_text_(bos_text()),
          control_text_(tokenizer_, sources(written_by)) {
        if (spec_.max_length <= added().before.size() + added().after.size()) {
            throw Error(ErrorKind::bundle, "the prompt spec's max_length " + std::to_string(spec_.max_length) +
                                               " leaves no room for a conversation");
        }
        if (!spec_.pieces) return;
        try {
            (void)encode(draft(probe), TooLong::cut, SpecialText::token);
        } catch (const Error& error) {
            throw Error(ErrorKind::bundle, std::string("the bundle's prompt spec does not fit its template or tokenizer: ") +
                                               error.what());
        }
    }

    /// The template's text. Throws Error (prompt) for roles it refuses, and if the bundle has no pieces of it.
    [[nodiscard]] std::string render(const Messages& messages) const {
        if (!spec_.pieces) {
            throw Error(ErrorKind::prompt, "the chat template of this bundle has no form without Jinja (rm-export inspect "
                                           "says why); send rendered text");
        }
        return spec_.pieces->render(messages);
    }

    /// A conversation's draft. Throws Error (prompt) for one that is none.
    [[nodiscard]] Draft draft(const Messages& messages) const {
        check_conversation(messages);
        Draft draft = draft_of(messages, "message");
        draft.render = [this](const std::vector<std::string>& texts) { return render(messages_of(texts)); };
        return draft;
    }

    /// A string that was rendered elsewhere; special-token text in it is special tokens.
    [[nodiscard]] static Draft rendered_draft(const std::string& text) {
        check_text(text, "the rendered prompt");
        return {{}, {}, [text](const std::vector<std::string>&) { return text; }};
    }

    /// Throws Error (prompt) for a row that cannot be encoded.
    [[nodiscard]] Prompt encode(const Draft& draft, TooLong too_long, SpecialText special_text) const {
        if (special_text != SpecialText::token && holds_control_text(draft, special_text)) {
            const MaskedTexts masked = control_text_.mask(draft.texts);
            const std::string rendered = without_bos(draft.render(masked.texts));
            return finish(control_text_.encode_as_text(rendered, masked), {}, too_long);
        }
        return finish(tokenizer_->encode(without_bos(draft.render(draft.texts))), draft.texts, too_long);
    }

    [[nodiscard]] const ChatPrompt& spec() const { return spec_; }

    /// A conversation as role, content, role, content, ...; name: what errors call a message.
    [[nodiscard]] static Draft draft_of(const Messages& messages, const std::string& name) {
        Draft draft;
        for (std::size_t place = 0; place < messages.size(); ++place) {
            draft.texts.insert(draft.texts.end(), {messages[place].role, messages[place].content});
            draft.places.push_back("the role of " + name + " " + std::to_string(place));
            draft.places.push_back("the content of " + name + " " + std::to_string(place));
        }
        return draft;
    }

    [[nodiscard]] static Messages messages_of(const std::vector<std::string>& texts) {
        Messages messages;
        for (std::size_t i = 0; i + 1 < texts.size(); i += 2) messages.push_back({texts[i], texts[i + 1]});
        return messages;
    }

private:
    ChatPrompt spec_;
    std::shared_ptr<const BundleTokenizer> tokenizer_;
    std::string bos_text_;
    ControlText control_text_;

    [[nodiscard]] const AddedIds& added() const {
        static const AddedIds none;
        return spec_.add_special_tokens ? tokenizer_->added_ids() : none;
    }

    [[nodiscard]] std::string bos_text() const {
        std::optional<std::string> text = spec_.bos_text;
        if (!text && spec_.bos_token_id) text = tokenizer_->token_of_id(*spec_.bos_token_id);
        if (spec_.remove_bos_text && text.value_or("").empty()) {
            throw Error(ErrorKind::bundle, "the prompt spec removes BOS text but names no BOS token");
        }
        return text.value_or("");
    }

    [[nodiscard]] std::vector<std::string> sources(std::vector<std::string> written_by) const {
        written_by.push_back(spec_.source);
        written_by.insert(written_by.end(), spec_.variables.begin(), spec_.variables.end());
        return written_by;
    }

    /// As the reference's, it reaches into users' texts.
    [[nodiscard]] std::string without_bos(const std::string& rendered) const {
        return spec_.remove_bos_text ? text::replaced(rendered, bos_text_, "") : rendered;
    }

    [[nodiscard]] bool holds_control_text(const Draft& draft, SpecialText special_text) const {
        for (std::size_t i = 0; i < draft.texts.size(); ++i) {
            const auto token = control_text_.find(draft.texts[i]);
            if (token && special_text == SpecialText::error) {
                throw Error(ErrorKind::prompt,
                            draft.places[i] + " holds the text of the special token " + text::quoted(*token));
            }
            if (token) return true;
        }
        return false;
    }

    /// Ids of the text checked, put between the added ones and cut. user_texts: one that holds BOS text excuses another
    /// BOS count, as in the reference.
    [[nodiscard]] Prompt finish(Ids of_text, const std::vector<std::string>& user_texts, TooLong too_long) const {
        const std::size_t before = added().before.size();
        const std::size_t after = added().after.size();
        Prompt prompt;
        prompt.ids = added().before;
        prompt.ids.insert(prompt.ids.end(), of_text.begin(), of_text.end());
        prompt.ids.insert(prompt.ids.end(), added().after.begin(), added().after.end());
        const Ids& suffix = spec_.required_suffix;
        const bool ends = prompt.ids.size() >= suffix.size() && std::equal(suffix.rbegin(), suffix.rend(), prompt.ids.rbegin());
        if (!ends) {
            throw Error(ErrorKind::prompt, "the prompt does not end in the ids " + json_text(suffix) + "; the template lacks them");
        }
        check_bos(prompt.ids, user_texts);
        const std::size_t length = prompt.ids.size();
        if (length <= spec_.max_length) return prompt;
        if (too_long == TooLong::error) {
            throw Error(ErrorKind::prompt, "the prompt has " + std::to_string(length) + " tokens, the limit is " +
                                               std::to_string(spec_.max_length) + "; shorten it");
        }
        const auto cut = static_cast<std::ptrdiff_t>(length - spec_.max_length);
        const auto text_start = prompt.ids.begin() + static_cast<std::ptrdiff_t>(before);
        const auto text_end = prompt.ids.end() - static_cast<std::ptrdiff_t>(after);
        if (spec_.cuts_left) {
            prompt.ids.erase(text_start, text_start + cut);
        } else {
            prompt.ids.erase(text_end - cut, text_end);
        }
        prompt.truncation.push_back({length - spec_.max_length, spec_.cuts_left ? "left" : "right"});
        return prompt;
    }

    void check_bos(const Ids& ids, const std::vector<std::string>& user_texts) const {
        if (!spec_.bos_token_id) return;
        std::int64_t count = 0;
        while (count < static_cast<std::int64_t>(ids.size()) && ids[static_cast<std::size_t>(count)] == *spec_.bos_token_id) {
            ++count;
        }
        const bool excused = !bos_text_.empty() && std::any_of(user_texts.begin(), user_texts.end(), [this](const auto& text) {
            return text.find(bos_text_) != std::string::npos;
        });
        if (count != spec_.bos_count && !excused) {
            throw Error(ErrorKind::prompt, "the prompt begins with " + std::to_string(count) + " BOS tokens (id " +
                                               std::to_string(*spec_.bos_token_id) + "), the model needs " +
                                               std::to_string(spec_.bos_count));
        }
    }
};

/// (context messages, answer A, answer B) -> prompts by a PairChatPrompt.
class PairChatPrompter {
public:
    PairChatPrompter(PairChatPrompt spec, const std::shared_ptr<const BundleTokenizer>& tokenizer)
        : spec_(std::move(spec)),
          chat_(spec_.chat, tokenizer, probe(), {spec_.context_source, spec_.message}) {}

    [[nodiscard]] Draft draft(const Messages& context, const std::string& a, const std::string& b) const {
        check_conversation(context);
        check_text(a, "answer A");
        check_text(b, "answer B");
        Draft draft = ChatPrompter::draft_of(context, "context message");
        draft.texts.insert(draft.texts.end(), {a, b});
        draft.places.insert(draft.places.end(), {"answer A", "answer B"});
        draft.render = [this](const std::vector<std::string>& texts) { return chat_.render(user_message(texts)); };
        return draft;
    }

    [[nodiscard]] const ChatPrompter& chat() const { return chat_; }

private:
    PairChatPrompt spec_;
    ChatPrompter chat_;

    [[nodiscard]] Messages probe() const {
        return spec_.context_pieces ? user_message({"user", "a", "b", "c"}) : Messages{{"user", "a"}};
    }

    /// texts: the context's roles and contents, then both answers.
    [[nodiscard]] Messages user_message(const std::vector<std::string>& texts) const {
        if (!spec_.context_pieces) {
            throw Error(ErrorKind::prompt, "the context template of this bundle has no form without Jinja (rm-export inspect "
                                           "says why); this model cannot compare answers here");
        }
        const std::vector<std::string> context(texts.begin(), texts.end() - 2);
        const std::string rendered = spec_.context_pieces->render(ChatPrompter::messages_of(context));
        std::string content;
        for (const auto& [literal, field] : spec_.message_parts) {
            content += literal;
            if (field == "context") content += rendered;
            if (field == "a") content += texts[texts.size() - 2];
            if (field == "b") content += texts.back();
        }
        return {{"user", content}};
    }
};

}  // namespace rm_runtime
