// The pairwise preference model: a prompt and two answers -> the probability that the first is better.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "../prompts.hpp"
#include "../results.hpp"
#include "opened.hpp"
#include "tournament.hpp"

namespace rm_runtime {

/// A prompt, whose last turn is the user's, and two answers to it.
struct Question {
    Messages messages;
    std::string a;
    std::string b;
};

/// A prompt and its answers.
struct RankingQuestion {
    Messages messages;
    std::vector<std::string> responses;
};

/// Every comparison asks in both orders, so that a preference for a place cancels out. Safe to share between threads.
class PairPM {
public:
    /// Compares two short answers. Throws Error (bundle) for a bundle that cannot.
    explicit PairPM(Opened opened)
        : opened_(std::move(opened)), prompter_(prompt(opened_), opened_.tokenizer), temperature_(temperature(opened_)) {
        const PairChatPrompt& spec = prompt(opened_);
        if (!spec.chat.pieces || !spec.context_pieces) return;
        const auto probe = compare(std::vector<Question>{{{{"user", "Hello"}}, "Hi", "Bye"}});
        if (const Error* error = error_of(probe.front())) {
            throw Error(ErrorKind::bundle, opened_.bundle.path.string() + " cannot compare even two plain answers: " +
                                               error->what() + "; export the bundle again");
        }
    }

    [[nodiscard]] const std::string& family() const { return opened_.bundle.manifest.family; }

    /// Compares two answers to one prompt; exactly 0.5 if their order changes nothing. Throws Error.
    [[nodiscard]] Comparison compare(const Messages& messages, const std::string& a, const std::string& b) const {
        return value_of(compare(std::vector<Question>{{messages, a, b}}).front());
    }

    /// Compares many, batched together; one Comparison each, in their order.
    [[nodiscard]] std::vector<Result<Comparison>> compare(const std::vector<Question>& questions) const {
        std::vector<Result<Prompt>> prompts;
        for (const Question& question : questions) {
            prompts.push_back(prompt_of(question.messages, question.a, question.b));
            prompts.push_back(prompt_of(question.messages, question.b, question.a));
        }
        const std::vector<std::vector<float>> logits = replies(prompts);
        std::vector<Result<Comparison>> results;
        for (std::size_t i = 0; i < prompts.size(); i += 2) {
            results.push_back(comparison(prompts[i], logits[i], prompts[i + 1], logits[i + 1]));
        }
        return results;
    }

    /// Ranks answers to one prompt by a knock-out; two answers score their two probabilities. Throws Error.
    [[nodiscard]] Ranking rank(const Messages& messages, const std::vector<std::string>& responses) const {
        return value_of(rank(std::vector<RankingQuestion>{{messages, responses}}).front());
    }

    /// Ranks many, their rounds batched together; one Ranking each, in their order.
    [[nodiscard]] std::vector<Result<Ranking>> rank(const std::vector<RankingQuestion>& questions) const {
        std::vector<Entry> entries;
        for (const RankingQuestion& question : questions) entries.emplace_back(question);
        while (true) {
            std::vector<Question> asked;
            std::vector<std::size_t> counts;
            for (const Entry& entry : entries) {
                const auto matches = entry.matches();
                counts.push_back(matches.size());
                for (const auto& [first, second] : matches) {
                    asked.push_back({entry.question.messages, entry.question.responses[first], entry.question.responses[second]});
                }
            }
            if (asked.empty()) break;
            const std::vector<Result<Comparison>> answers = compare(asked);
            auto next = answers.begin();
            for (std::size_t i = 0; i < entries.size(); ++i) {
                const auto end = next + static_cast<std::ptrdiff_t>(counts[i]);
                if (counts[i] > 0) entries[i].play({next, end});
                next = end;
            }
        }
        std::vector<Result<Ranking>> results;
        for (const Entry& entry : entries) results.push_back(entry.result());
        return results;
    }

private:
    /// One prompt's answers on their way through a knock-out, until it is over or a comparison fails.
    struct Entry {
        const RankingQuestion& question;
        std::vector<Error> error;  ///< none or one
        KnockOut contest;
        std::vector<Truncations> truncation;

        explicit Entry(const RankingQuestion& asked)
            : question(asked), error(refusal(asked)), contest(error.empty() ? asked.responses.size() : 0),
              truncation(contest.scores().size()) {}

        [[nodiscard]] std::vector<std::pair<std::size_t, std::size_t>> matches() const {
            if (!error.empty()) return {};
            return contest.matches();
        }

        void play(const std::vector<Result<Comparison>>& answers) {
            const auto pairs = contest.matches();
            std::vector<double> probabilities;
            for (std::size_t i = 0; i < answers.size(); ++i) {
                const auto& [first, second] = pairs[i];
                if (const Error* failed = error_of(answers[i])) {
                    error.emplace_back(failed->kind(), "responses " + std::to_string(first) + " and " +
                                                           std::to_string(second) + ": " + failed->what());
                    return;
                }
                const auto& answer = std::get<Comparison>(answers[i]);
                probabilities.push_back(answer.probability);
                for (const std::size_t response : {first, second}) add_cuts(truncation[response], answer.truncation);
            }
            contest.play(probabilities);
        }

        [[nodiscard]] Result<Ranking> result() const {
            if (!error.empty()) return error.front();
            return Ranking::from_scores(contest.scores(), truncation);
        }

        static void add_cuts(Truncations& cuts, const Truncations& more) {
            for (const Truncation& cut : more) {
                if (std::find(cuts.begin(), cuts.end(), cut) == cuts.end()) cuts.push_back(cut);
            }
        }

        static std::vector<Error> refusal(const RankingQuestion& asked) {
            if (asked.responses.empty()) return {Error(ErrorKind::request, "responses must be a list of at least one text")};
            try {
                check_conversation(asked.messages);
                for (std::size_t i = 0; i < asked.responses.size(); ++i) {
                    check_text(asked.responses[i], "response " + std::to_string(i));
                }
            } catch (const Error& error) {
                return {error};
            }
            return {};
        }
    };

    Opened opened_;
    PairChatPrompter prompter_;
    double temperature_;

    static const PairChatPrompt& prompt(const Opened& opened) {
        const auto* const prompt = std::get_if<PairChatPrompt>(&opened.bundle.manifest.prompt);
        if (prompt == nullptr) opened.fail("is of family " + opened.bundle.manifest.family + ", which needs a pair-chat prompt");
        return *prompt;
    }

    static double temperature(const Opened& opened) {
        const Json value = opened.bundle.manifest.parameters.value("temperature", Json());
        if (!value.is_number() || !(value.get<double>() > 0)) opened.fail("has the temperature " + value.dump().substr(0, 40));
        return value.get<double>();
    }

    /// 1 / (1 + exp(-x)), without overflow.
    static double sigmoid(double x) {
        if (x >= 0) return 1 / (1 + std::exp(-x));
        const double power = std::exp(x);
        return power / (1 + power);
    }

    [[nodiscard]] Result<Prompt> prompt_of(const Messages& messages, const std::string& a, const std::string& b) const {
        try {
            const Draft draft = prompter_.draft(messages, a, b);
            Prompt prompt = prompter_.chat().encode(draft, opened_.options.too_long, opened_.options.special_text);
            const Ids& end = prompter_.chat().spec().required_suffix;
            const bool whole = prompt.ids.size() >= end.size() && std::equal(end.rbegin(), end.rend(), prompt.ids.rbegin());
            if (!whole) {
                std::string cuts;
                for (const Truncation& cut : prompt.truncation) {
                    cuts += std::to_string(cut.tokens) + " tokens cut from the " + cut.side + " of the " + cut.part;
                }
                throw Error(ErrorKind::prompt,
                            "the prompt is too long, and the model cannot answer without its end (" + cuts + ")");
            }
            return prompt;
        } catch (const Error& error) {
            if (error.kind() != ErrorKind::prompt) throw;
            return error;
        }
    }

    /// The logits of "A" and "B" of each prompt; equal prompts are run once, so that equal answers tie exactly.
    [[nodiscard]] std::vector<std::vector<float>> replies(const std::vector<Result<Prompt>>& prompts) const {
        std::map<Ids, std::size_t> places;
        std::vector<Ids> rows;
        for (const Result<Prompt>& prompt : prompts) {
            if (error_of(prompt) != nullptr) continue;
            const Ids& ids = std::get<Prompt>(prompt).ids;
            if (places.emplace(ids, rows.size()).second) rows.push_back(ids);
        }
        const Outputs outputs = opened_.engine->run(rows);
        std::vector<std::vector<float>> logits;
        for (const Result<Prompt>& prompt : prompts) {
            if (error_of(prompt) != nullptr) {
                logits.emplace_back();
            } else {
                logits.push_back(opened_.output(outputs, "logits", 2)[places.at(std::get<Prompt>(prompt).ids)]);
            }
        }
        return logits;
    }

    /// The first answer is "A" in the prompt `a_first` and "B" in `b_first`.
    [[nodiscard]] Result<Comparison> comparison(const Result<Prompt>& a_first, const std::vector<float>& first,
                                                const Result<Prompt>& b_first, const std::vector<float>& second) const {
        for (const Result<Prompt>* const prompt : {&a_first, &b_first}) {
            if (const Error* error = error_of(*prompt)) return *error;
        }
        const double first_margin = double{first[0]} - double{first[1]};
        const double second_margin = double{second[0]} - double{second[1]};
        if (!std::isfinite(first_margin) || !std::isfinite(second_margin)) {
            const bool empty = std::get<Prompt>(a_first).ids.empty();
            return Error(ErrorKind::unscorable, std::string("the model gave no number for it: ") +
                                                    (empty ? "no token to read" : "its weights or activations are not finite"));
        }
        Comparison result;
        result.order_probabilities[0] = sigmoid(first_margin / temperature_);
        result.order_probabilities[1] = sigmoid(-second_margin / temperature_);
        // the rounding of a mean must not decide between answers that the model holds equal
        result.probability = first_margin == second_margin
                                 ? 0.5
                                 : (result.order_probabilities[0] + result.order_probabilities[1]) / 2;
        for (std::size_t choice = 0; choice < 2; ++choice) {
            result.logits[0][choice] = first[choice];
            result.logits[1][choice] = second[choice];
        }
        result.truncation = std::get<Prompt>(a_first).truncation;
        const Truncations& more = std::get<Prompt>(b_first).truncation;
        result.truncation.insert(result.truncation.end(), more.begin(), more.end());
        return result;
    }
};

}  // namespace rm_runtime
