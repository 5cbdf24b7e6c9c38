// Families that score one conversation at a time: armorm, grm, scalar, dpa-rm.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "../prompts.hpp"
#include "../results.hpp"
#include "opened.hpp"

namespace rm_runtime {

/// The five HelpSteer attributes, in the order of the first outputs of ArmoRM and the DPA reward model.
inline constexpr std::size_t helpsteer_attributes = 5;

/// Safe to share between threads.
class PointwiseModel {
public:
    /// Scores one short chat, which warms the engine up. Throws Error (bundle) for a bundle that cannot score it.
    explicit PointwiseModel(Opened opened)
        : opened_(std::move(opened)), prompter_(prompt(opened_), opened_.tokenizer, plain_chat()) {
        if (!prompter_.spec().pieces) return;
        const auto results = score({plain_chat()});
        if (const Error* error = error_of(results.front())) {
            throw Error(ErrorKind::bundle, opened_.bundle.path.string() + " cannot score even a plain chat: " + error->what() +
                                               "; export the bundle again");
        }
    }

    [[nodiscard]] const std::string& family() const { return opened_.bundle.manifest.family; }

    /// One Score a conversation, in their order; a conversation ends in the answer that is scored.
    [[nodiscard]] std::vector<Result<Score>> score(const std::vector<Messages>& conversations) const {
        std::vector<Result<Prompt>> prompts;
        for (const Messages& conversation : conversations) {
            prompts.push_back(prompt_of([&] { return prompter_.draft(conversation); }));
        }
        return scored(prompts);
    }

    /// Scores conversations that were rendered elsewhere: what the bundle's chat template gives.
    [[nodiscard]] std::vector<Result<Score>> score_rendered(const std::vector<std::string>& texts) const {
        std::vector<Result<Prompt>> prompts;
        for (const std::string& text : texts) {
            prompts.push_back(prompt_of([&] { return ChatPrompter::rendered_draft(text); }));
        }
        return scored(prompts);
    }

    /// Ranks answers to one prompt by their scores. Throws Error for the first that cannot be scored.
    [[nodiscard]] Ranking rank(const Messages& messages, const std::vector<std::string>& responses) const {
        if (responses.empty()) throw Error(ErrorKind::request, "responses must be a list of at least one text");
        return ranking_of(score(conversations_with(messages, responses)));
    }

    /// One conversation a response: the messages followed by it.
    [[nodiscard]] static std::vector<Messages> conversations_with(const Messages& messages,
                                                                  const std::vector<std::string>& responses) {
        std::vector<Messages> conversations;
        for (const std::string& response : responses) {
            conversations.push_back(messages);
            conversations.back().push_back({"assistant", response});
        }
        return conversations;
    }

    /// The ranking that scores make. Throws Error (request) that names every response without one.
    [[nodiscard]] static Ranking ranking_of(const std::vector<Result<Score>>& results) {
        std::string failures;
        std::vector<double> scores;
        std::vector<Truncations> truncation;
        for (std::size_t i = 0; i < results.size(); ++i) {
            if (const Error* error = error_of(results[i])) {
                failures += (failures.empty() ? "response " : "; response ") + std::to_string(i) + ": " + error->what();
            } else {
                scores.push_back(std::get<Score>(results[i]).score);
                truncation.push_back(std::get<Score>(results[i]).truncation);
            }
        }
        if (!failures.empty()) throw Error(ErrorKind::request, failures);
        return Ranking::from_scores(std::move(scores), std::move(truncation));
    }

private:
    Opened opened_;
    ChatPrompter prompter_;

    static Messages plain_chat() { return {{"user", "Hello"}, {"assistant", "Hi"}}; }

    static const ChatPrompt& prompt(const Opened& opened) {
        const auto* const prompt = std::get_if<ChatPrompt>(&opened.bundle.manifest.prompt);
        if (prompt == nullptr) opened.fail("is of family " + opened.bundle.manifest.family + ", which needs a chat prompt");
        return *prompt;
    }

    template <class MakeDraft>
    [[nodiscard]] Result<Prompt> prompt_of(MakeDraft make_draft) const {
        try {
            return prompter_.encode(make_draft(), opened_.options.too_long, opened_.options.special_text);
        } catch (const Error& error) {
            if (error.kind() != ErrorKind::prompt) throw;
            return error;
        }
    }

    [[nodiscard]] std::vector<Result<Score>> scored(const std::vector<Result<Prompt>>& prompts) const {
        std::vector<Ids> rows;
        for (const Result<Prompt>& prompt : prompts) {
            if (error_of(prompt) == nullptr) rows.push_back(std::get<Prompt>(prompt).ids);
        }
        const Outputs outputs = opened_.engine->run(rows);
        std::vector<Result<Score>> results;
        std::size_t row = 0;
        for (const Result<Prompt>& prompt : prompts) {
            if (const Error* error = error_of(prompt)) {
                results.emplace_back(*error);
            } else {
                results.push_back(score_of(std::get<Prompt>(prompt), outputs, row++));
            }
        }
        return results;
    }

    [[nodiscard]] Result<Score> score_of(const Prompt& prompt, const Outputs& outputs, std::size_t row) const {
        Score score;
        score.score = opened_.output(outputs, "score", 1)[row][0];
        if (std::isnan(score.score)) return unscorable(prompt);
        score.tokens = prompt.ids.size();
        score.truncation = prompt.truncation;
        const bool is_armorm = family() == "armorm";
        const bool is_dpa = family() == "dpa-rm";
        if (is_armorm || is_dpa) score.rewards = named("rewards", outputs, row);
        if (is_armorm) {
            score.gating = named("gating", outputs, row);
            score.coefficients = named("coefficients", outputs, row);
        }
        for (std::size_t i = 0; i < std::min(score.rewards.size(), helpsteer_attributes); ++i) {
            const double reward = score.rewards[i].second;
            score.helpsteer.push_back(is_dpa ? (reward - 10) / 20 : reward * 5 - 0.5);  // the model cards
        }
        const auto logits = outputs.find("logits");
        if (!is_armorm && !is_dpa && logits != outputs.end()) {
            score.logits.assign(logits->second[row].begin(), logits->second[row].end());
        }
        return score;
    }

    [[nodiscard]] NamedValues named(const std::string& output, const Outputs& outputs, std::size_t row) const {
        const Json names = opened_.bundle.manifest.parameters.value("objectives", Json());
        if (!names.is_array()) opened_.fail("names no objectives");
        const std::vector<float>& values = opened_.output(outputs, output, names.size())[row];
        NamedValues result;
        for (std::size_t i = 0; i < names.size(); ++i) {
            result.emplace_back(names[i].is_string() ? names[i].get<std::string>() : names[i].dump(), values[i]);
        }
        return result;
    }

    [[nodiscard]] Error unscorable(const Prompt& prompt) const {
        if (family() == "armorm") {
            Ids gate;
            for (const Json& id : opened_.bundle.manifest.parameters.value("gate_pattern", Json())) {
                if (!id.is_number_integer()) opened_.fail("has the gate pattern id " + id.dump().substr(0, 40));
                gate.push_back(id.get<std::int64_t>());
            }
            if (std::search(prompt.ids.begin(), prompt.ids.end(), gate.begin(), gate.end()) == prompt.ids.end()) {
                std::string cuts;
                for (const Truncation& cut : prompt.truncation) {
                    cuts += (cuts.empty() ? " (" : "; ") + std::to_string(cut.tokens) + " tokens cut from the " + cut.side +
                            " of the " + cut.part;
                }
                return {ErrorKind::unscorable,
                        "its ids hold no start of an assistant turn after another turn, where ArmoRM's gate reads" +
                            (cuts.empty() ? "" : cuts + ")") + "; the conversation needs a user turn before the answer"};
            }
        }
        if (prompt.ids.empty()) return {ErrorKind::unscorable, "the conversation renders to no token at all"};
        return {ErrorKind::unscorable, "the model gave no number for it: its weights or activations are not finite"};
    }
};

}  // namespace rm_runtime
