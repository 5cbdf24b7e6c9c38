// JSON requests and what answers them. Source: rm_runtime.json_requests, whose lines and words these are.
//
//   {"messages": [...]}                                          -> {"score": ..., ...}  pointwise families
//   {"messages": [...], "responses": ["...", ...]}               -> {"ranks": [...], "scores": [...], ...}
//   {"input": "...", "candidates": [...], "instruction": "..."}  -> {"ranks": [...], "scores": [...]}  PairRM
//   {"text": "..."}                                              -> {"score": ..., ...}  a rendered chat; C++ only
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "json.hpp"
#include "load.hpp"

namespace rm_runtime {

/// One request. messages: with its first error in their place; responses: the answers to rank, never empty.
struct Request {
    std::optional<Result<Messages>> messages;
    std::optional<std::vector<std::string>> responses;
    std::optional<std::string> source;
    std::string instruction;
    std::optional<std::string> rendered;
};

using Reply = Result<nlohmann::ordered_json>;

/// Messages as JSON. Throws Error (prompt) that names the message and what is wrong with it.
[[nodiscard]] inline Messages read_messages(const Json& array) {
    Messages messages;
    for (std::size_t place = 0; place < array.size(); ++place) {
        const Json& message = array[place];
        const std::string where = "message " + std::to_string(place);
        if (!message.is_object()) {
            throw Error(ErrorKind::prompt, where + R"( must be {"role": ..., "content": ...}, not )" + python_type(message));
        }
        for (const char* const key : {"role", "content"}) {
            if (!message.contains(key)) throw Error(ErrorKind::prompt, where + " has no '" + key + "'");
        }
        for (const auto& [key, value] : message.items()) {
            if (key == "role" || key == "content") continue;
            throw Error(ErrorKind::prompt, where + " has the unknown key " + text::quoted(key) +
                                               "; only 'role' and 'content' are scored");
        }
        for (const char* const key : {"role", "content"}) {
            if (!message[key].is_string()) {
                throw Error(ErrorKind::prompt, std::string("the ") + key + " of " + where + " must be a string, not " +
                                                   python_type(message[key]));
            }
        }
        messages.push_back({message["role"].get<std::string>(), message["content"].get<std::string>()});
    }
    return messages;
}

/// A request from a parsed JSON value. Throws Error (request) that names the key and what is wrong with it.
[[nodiscard]] inline Request read_request(const Json& document) {
    if (!document.is_object()) throw Error(ErrorKind::request, "a request is a JSON object, not " + json_type(document));
    const auto field = [&document](const char* key) {
        const auto found = document.find(key);
        return found == document.end() || found->is_null() ? nullptr : &*found;
    };
    const auto text_of = [&field](const char* key) -> std::optional<std::string> {
        const Json* const text = field(key);
        if (text == nullptr) return std::nullopt;
        if (!text->is_string()) {
            throw Error(ErrorKind::request, std::string("\"") + key + "\" must be a text, not " + json_type(*text));
        }
        return text->get<std::string>();
    };
    const auto texts_of = [&field](const char* key) -> std::optional<std::vector<std::string>> {
        const Json* const texts = field(key);
        if (texts == nullptr) return std::nullopt;
        const std::string name = std::string("\"") + key + "\"";
        if (!texts->is_array() || texts->empty()) {
            throw Error(ErrorKind::request, name + " must be an array of at least one text, not " + json_type(*texts));
        }
        for (std::size_t place = 0; place < texts->size(); ++place) {
            if ((*texts)[place].is_string()) continue;
            throw Error(ErrorKind::request, name + " holds " + json_type((*texts)[place]) + " at place " +
                                                std::to_string(place) + ", not a text");
        }
        return texts->get<std::vector<std::string>>();
    };
    Request request;
    if (const Json* const messages = field("messages")) {
        if (!messages->is_array()) {
            throw Error(ErrorKind::request, "\"messages\" must be an array of messages, not " + json_type(*messages));
        }
        request.responses = texts_of("responses");
        try {
            request.messages = read_messages(*messages);
        } catch (const Error& error) {
            request.messages = error;
        }
        return request;
    }
    request.rendered = text_of("text");
    if (request.rendered) return request;
    request.source = text_of("input");
    request.responses = texts_of("candidates");
    if (!request.source) {
        throw Error(ErrorKind::request, "a request needs \"messages\", or for PairRM \"input\" and \"candidates\"");
    }
    if (!request.responses) {
        throw Error(ErrorKind::request, "a request with \"input\" needs \"candidates\", the answers to rank");
    }
    request.instruction = text_of("instruction").value_or("");
    return request;
}

[[nodiscard]] inline nlohmann::ordered_json to_json(const Truncations& truncation) {
    nlohmann::ordered_json cuts = nlohmann::ordered_json::array();
    for (const Truncation& cut : truncation) cuts.push_back({{"tokens", cut.tokens}, {"side", cut.side}, {"part", cut.part}});
    return cuts;
}

[[nodiscard]] inline nlohmann::ordered_json to_json(const Score& score, const std::string& family) {
    const auto values = [](const NamedValues& named) {
        std::vector<double> numbers;
        for (const auto& [name, value] : named) numbers.push_back(value);
        return numbers;
    };
    nlohmann::ordered_json line = {{"score", score.score}};
    if (!score.truncation.empty()) line["truncated"] = to_json(score.truncation);
    if (!score.rewards.empty()) line["rewards"] = values(score.rewards);
    if (!score.gating.empty()) line["gating"] = values(score.gating);
    if (!score.coefficients.empty()) line["coefficients"] = values(score.coefficients);
    if (family == "dpa-rm") line["helpsteer"] = score.helpsteer;
    if (!score.logits.empty()) line["logits"] = score.logits;
    return line;
}

[[nodiscard]] inline nlohmann::ordered_json to_json(const Ranking& ranking) {
    nlohmann::ordered_json line = {{"ranks", ranking.ranks}, {"scores", ranking.scores}};
    nlohmann::ordered_json cuts = nlohmann::ordered_json::array();
    bool any = false;
    for (const Truncations& truncation : ranking.truncation) {
        any = any || !truncation.empty();
        cuts.push_back(to_json(truncation));
    }
    if (any) line["truncated"] = cuts;
    return line;
}

[[nodiscard]] inline nlohmann::ordered_json to_json(const Comparison& comparison) {
    nlohmann::ordered_json line = to_json(Ranking::from_scores({comparison.probability, 1 - comparison.probability}));
    line["probability"] = comparison.probability;
    line["order_probabilities"] = comparison.order_probabilities;
    line["logits"] = comparison.logits;
    if (!comparison.truncation.empty()) line["truncated"] = to_json(comparison.truncation);
    return line;
}

/// The reply to each request, in their order; the model runs them all as one batched request. Throws what is no single
/// request's fault.
class Answers {
public:
    [[nodiscard]] static std::vector<Reply> of(const Model& model, const std::vector<Request>& requests) {
        return std::visit([&requests](const auto& loaded) { return replies(loaded, requests); }, model);
    }

private:
    static Error only_pairrm() {
        return {ErrorKind::request, "only PairRM takes \"input\" and \"candidates\"; send \"messages\" and \"responses\""};
    }

    static Error needs_responses() {
        return {ErrorKind::request, "this model compares answers and cannot score one alone; send \"responses\""};
    }

    template <class Value, class Write>
    static Reply reply(const Result<Value>& result, Write write) {
        if (const Error* error = error_of(result)) return *error;
        return write(std::get<Value>(result));
    }

    /// Conversations and rendered texts of all requests run together; `rows` remembers whose they are.
    static std::vector<Reply> replies(const PointwiseModel& model, const std::vector<Request>& requests) {
        std::vector<Messages> conversations;
        std::vector<std::string> texts;
        for (const Request& request : requests) {
            if (request.rendered) texts.push_back(*request.rendered);
            if (!request.messages || error_of(*request.messages) != nullptr) continue;
            const auto& messages = std::get<Messages>(*request.messages);
            if (!request.responses) {
                conversations.push_back(messages);
            } else {
                for (Messages& chat : PointwiseModel::conversations_with(messages, *request.responses)) {
                    conversations.push_back(std::move(chat));
                }
            }
        }
        const std::vector<Result<Score>> scores = model.score(conversations);
        const std::vector<Result<Score>> of_texts = model.score_rendered(texts);
        std::vector<Reply> replies;
        auto next = scores.begin();
        auto next_text = of_texts.begin();
        const auto written = [&model](const Score& score) { return to_json(score, model.family()); };
        for (const Request& request : requests) {
            if (request.rendered) {
                replies.push_back(reply(*next_text++, written));
            } else if (!request.messages) {
                replies.emplace_back(only_pairrm());
            } else if (const Error* error = error_of(*request.messages)) {
                replies.emplace_back(request.responses ? of_each_response(*error, request.responses->size()) : *error);
            } else if (!request.responses) {
                replies.push_back(reply(*next++, written));
            } else {
                const auto end = next + static_cast<std::ptrdiff_t>(request.responses->size());
                replies.push_back(ranked({next, end}));
                next = end;
            }
        }
        return replies;
    }

    static Reply ranked(const std::vector<Result<Score>>& scores) {
        try {
            return to_json(PointwiseModel::ranking_of(scores));
        } catch (const Error& error) {
            return error;
        }
    }

    static Error of_each_response(const Error& error, std::size_t responses) {
        std::string message;
        for (std::size_t i = 0; i < responses; ++i) {
            message += (i > 0 ? "; response " : "response ") + std::to_string(i) + ": " + error.what();
        }
        return {ErrorKind::request, message};
    }

    static std::vector<Reply> replies(const PairPM& model, const std::vector<Request>& requests) {
        std::vector<Question> pairs;
        std::vector<RankingQuestion> groups;
        for (const Request& request : requests) {
            if (refusal(request)) continue;
            const auto& messages = std::get<Messages>(*request.messages);
            if (request.responses->size() == 2) {
                pairs.push_back({messages, (*request.responses)[0], (*request.responses)[1]});
            } else {
                groups.push_back({messages, *request.responses});
            }
        }
        const std::vector<Result<Comparison>> comparisons = model.compare(pairs);
        const std::vector<Result<Ranking>> rankings = model.rank(groups);
        auto comparison = comparisons.begin();
        auto ranking = rankings.begin();
        std::vector<Reply> replies;
        for (const Request& request : requests) {
            if (const auto error = refusal(request)) {
                replies.emplace_back(*error);
            } else if (request.responses->size() == 2) {
                replies.push_back(reply(*comparison++, [](const Comparison& result) { return to_json(result); }));
            } else {
                replies.push_back(reply(*ranking++, [](const Ranking& result) { return to_json(result); }));
            }
        }
        return replies;
    }

    static std::optional<Error> refusal(const Request& request) {
        if (request.rendered) return needs_responses();
        if (!request.messages) return only_pairrm();
        if (!request.responses) return needs_responses();
        if (const Error* error = error_of(*request.messages)) return *error;
        return std::nullopt;
    }

    static std::vector<Reply> replies(const PairRM& model, const std::vector<Request>& requests) {
        std::vector<Reply> replies;
        for (const Request& request : requests) {
            try {
                if (!request.responses) throw needs_responses();
                replies.emplace_back(to_json(
                    request.messages ? model.rank(value_of(*request.messages), *request.responses)
                                     : model.rank(request.source.value_or(""), *request.responses, request.instruction)));
            } catch (const Error& error) {
                if (error.kind() == ErrorKind::bundle || error.kind() == ErrorKind::engine) throw;
                replies.emplace_back(error);
            }
        }
        return replies;
    }
};

}  // namespace rm_runtime
