// PairRM: a source and candidates -> which is better. Source: rm_runtime.families.pairrm (LLM-Blender's results).
#pragma once

#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "../prompts.hpp"
#include "../results.hpp"
#include "../segments.hpp"
#include "opened.hpp"

namespace rm_runtime {

/// Each question is a batch of its own, so that the length of one never decides how much of another is read. Safe to share
/// between threads.
class PairRM {
public:
    /// Compares two short answers. Throws Error (bundle) for a bundle that cannot.
    explicit PairRM(Opened opened) : opened_(std::move(opened)), prompter_(prompt(opened_), opened_.tokenizer) {
        try {
            (void)scores("Hello", {"Hi", "Bye"});
        } catch (const Error& error) {
            throw Error(ErrorKind::bundle,
                        opened_.bundle.path.string() + " cannot compare two plain answers: " + error.what());
        }
    }

    [[nodiscard]] const std::string& family() const { return opened_.bundle.manifest.family; }

    /// Ranks answers to one chat, every pair of them in both orders. Throws Error.
    [[nodiscard]] Ranking rank(const Messages& messages, const std::vector<std::string>& responses) const {
        const auto [source, candidates] = ranked_texts(messages, responses);
        const Segments group = encode(source, candidates);
        std::vector<Truncations> cuts;
        for (std::size_t i = 0; i < candidates.size(); ++i) cuts.push_back(group.truncation(i));
        return Ranking::from_scores(scores_of(group), std::move(cuts));
    }

    /// Ranks candidates for an input; instruction: put before it without a separator. Throws Error.
    [[nodiscard]] Ranking rank(const std::string& input, const std::vector<std::string>& candidates,
                               const std::string& instruction = "") const {
        check_text(input, "input 0");
        check_text(instruction, "instruction 0");
        return Ranking::from_scores(scores(instruction + input, candidates));
    }

    /// f(a, b) - f(b, a): positive prefers `a`. Throws Error.
    [[nodiscard]] double compare(const std::string& input, const std::string& a, const std::string& b) const {
        const std::vector<double> both = scores(input, {a, b});
        return both[0] - both[1];
    }

private:
    Opened opened_;
    SegmentsPrompter prompter_;

    static const SegmentsPrompt& prompt(const Opened& opened) {
        const auto* const prompt = std::get_if<SegmentsPrompt>(&opened.bundle.manifest.prompt);
        if (prompt == nullptr) opened.fail("is of family " + opened.bundle.manifest.family + ", which needs a segments prompt");
        return *prompt;
    }

    [[nodiscard]] Segments encode(const std::string& source, const std::vector<std::string>& candidates) const {
        return prompter_.encode(source, candidates, opened_.options.too_long, opened_.options.special_text);
    }

    [[nodiscard]] std::vector<double> scores(const std::string& source, const std::vector<std::string>& candidates) const {
        if (candidates.empty()) throw Error(ErrorKind::request, "every input needs at least one candidate");
        return scores_of(encode(source, candidates));
    }

    /// Mean over all candidates, the one itself included, of f(i, j) - f(j, i); float32 as in the reference.
    [[nodiscard]] std::vector<double> scores_of(const Segments& group) const {
        const std::size_t count = group.candidates.size();
        const std::vector<std::vector<float>> logits = comparisons(group);
        std::vector<double> scores;
        for (std::size_t i = 0; i < count; ++i) {
            std::vector<float> margins;
            for (std::size_t j = 0; j < count; ++j) margins.push_back(logits[i][j] - logits[j][i]);
            scores.push_back(sum(margins) / static_cast<float>(count));
        }
        return scores;
    }

    /// A sum in numpy's order for up to 128 values, so that equal candidates tie here if they tie there.
    static float sum(const std::vector<float>& values) {
        float total = 0;
        std::size_t place = 0;
        if (values.size() >= 8) {
            float lanes[8] = {};
            for (; place + 8 <= values.size(); place += 8) {
                for (std::size_t lane = 0; lane < 8; ++lane) lanes[lane] += values[place + lane];
            }
            total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
        }
        for (; place < values.size(); ++place) total += values[place];
        return total;
    }

    /// f(i, j) of every ordered pair, 0 on the diagonal; equal rows run once, so that equals tie exactly.
    [[nodiscard]] std::vector<std::vector<float>> comparisons(const Segments& group) const {
        const std::size_t count = group.candidates.size();
        std::map<Ids, std::size_t> places;
        std::vector<Ids> rows;
        std::vector<std::size_t> chosen(count * count);
        for (std::size_t i = 0; i < count; ++i) {
            for (std::size_t j = 0; j < count; ++j) {
                if (i == j) continue;
                Ids row = group.row(i, j);
                const auto [found, is_new] = places.emplace(row, rows.size());
                chosen[i * count + j] = found->second;
                if (is_new) rows.push_back(std::move(row));
            }
        }
        const Outputs outputs = opened_.engine->run(rows);
        std::vector<std::vector<float>> logits(count, std::vector<float>(count));
        for (std::size_t i = 0; i < count; ++i) {
            for (std::size_t j = 0; j < count; ++j) {
                if (i == j) continue;
                logits[i][j] = opened_.output(outputs, "logit", 1)[chosen[i * count + j]][0];
                if (!std::isfinite(logits[i][j])) {
                    throw Error(ErrorKind::unscorable, "input 0, candidates " + std::to_string(i) + " and " + std::to_string(j) +
                                                           ": the model gave no number for them; its weights or "
                                                           "activations are not finite");
                }
            }
        }
        return logits;
    }

    /// A chat up to its answer, and the answers -> source text, candidate texts, as LLM-Blender would be asked.
    static std::pair<std::string, std::vector<std::string>> ranked_texts(const Messages& messages,
                                                                         const std::vector<std::string>& responses) {
        if (responses.empty()) throw Error(ErrorKind::request, "responses must be a list of at least one text");
        for (std::size_t i = 0; i < responses.size(); ++i) check_text(responses[i], "response " + std::to_string(i));
        check_conversation(messages);
        const bool has_system = messages.front().role == "system";
        const std::string system = has_system ? messages.front().content : "";
        const Messages turns(messages.begin() + (has_system ? 1 : 0), messages.end());
        for (std::size_t place = 0; place < turns.size(); ++place) {
            const std::string expected = place % 2 == 0 ? "user" : "assistant";
            if (turns[place].role != expected) {
                throw Error(ErrorKind::prompt, "turn " + std::to_string(place) + " has the role " +
                                                   text::quoted(turns[place].role) + "; PairRM needs " + expected + " there");
            }
        }
        if (turns.size() % 2 == 0) {
            throw Error(ErrorKind::prompt, "the messages must end in the user's turn that the responses answer");
        }
        if (turns.size() == 1) return {system + turns[0].content, responses};
        // LLM-Blender's words, its spelling included: the model was asked with them
        std::string source = system +
                             "Finish the following coversation in each i-th turn by filling in <Response i> with your "
                             "response.";
        std::string answers;
        for (std::size_t place = 0; place < turns.size(); place += 2) {
            const std::string number = std::to_string(place / 2 + 1);
            source += (place > 0 ? "\n" : "") + std::string("USER: ") + turns[place].content + "\nAssistant: <Response " + number + ">";
            if (place + 1 < turns.size()) answers += "<Response " + number + ">: " + turns[place + 1].content + "\n";
        }
        const std::string last = std::to_string(turns.size() / 2 + 1);
        std::vector<std::string> candidates;
        for (const std::string& response : responses) candidates.push_back(answers + "<Response " + last + ">: " + response);
        return {source, candidates};
    }
};

}  // namespace rm_runtime
