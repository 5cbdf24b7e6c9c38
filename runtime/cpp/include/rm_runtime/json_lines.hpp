// A stream of JSON lines -> the lines that answer it, in the same order and in bounded memory. Source: rm_runtime.jsonl.
#pragma once

#include <cmath>
#include <cstddef>
#include <functional>
#include <istream>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "json_requests.hpp"

namespace rm_runtime {

inline constexpr std::size_t chunk_lines = 256;                            // answered as one batched request
inline constexpr std::size_t chunk_bytes = std::size_t{8} << 20;           // a line counts once for each response
inline constexpr std::size_t longest_line = std::size_t{16} << 20;         // a longer one is an error, and never held

/// A request as it was read. passed_on: the "id" that its answer repeats; size: bytes the model is to read, roughly.
struct Line {
    std::size_t number = 0;
    std::optional<Json> id;
    Result<Request> request;
    std::size_t size = 0;
};

/// The answer to a line: one line of JSON without its end. failed: it is an error.
struct Answer {
    std::string text;
    bool failed = false;
};

/// The request that a line holds. ranking: refuse requests without responses.
[[nodiscard]] inline Line read_line(std::size_t number, std::string_view source, bool ranking) {
    Line line{number, std::nullopt, Request(), 0};
    try {
        const Json document = parse_json(source);
        if (document.is_object() && document.contains("id")) {
            if (document["id"].is_structured()) {
                throw Error(ErrorKind::request, "\"id\" must be a string or a number, not an object or an array");
            }
            line.id = document["id"];
        }
        Request request = read_request(document);
        if (ranking && !request.responses) {
            throw Error(ErrorKind::request, "ranking needs \"responses\", the answers to rank");
        }
        line.size = source.size() * (request.responses ? request.responses->size() : 1);
        line.request = std::move(request);
    } catch (const Error& error) {
        line.request = error;
    }
    return line;
}

/// Reads lines that are not blank; they end in LF or CRLF, and a byte order mark may come first.
class LineReader {
public:
    LineReader(std::istream& source, bool ranking) : source_(source), ranking_(ranking) {}

    /// The next line, or nothing at the end.
    [[nodiscard]] std::optional<Line> next() {
        while (source_.peek() != std::istream::traits_type::eof()) {
            const bool too_long = !read();
            ++number_;
            if (too_long) {
                const Error error(ErrorKind::request, "longer than " + std::to_string(longest_line) + " bytes");
                return Line{number_, std::nullopt, error, 0};
            }
            std::string_view line = buffer_;
            if (number_ == 1 && line.substr(0, 3) == "\xEF\xBB\xBF") line.remove_prefix(3);
            while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.remove_suffix(1);
            if (line.find_first_not_of(" \t\n\r\v\f") != std::string_view::npos) return read_line(number_, line, ranking_);
        }
        return std::nullopt;
    }

private:
    std::istream& source_;
    bool ranking_;
    std::size_t number_ = 0;
    std::string buffer_;

    /// Reads a line with its end into the buffer; false, and past the line, if it is too long.
    [[nodiscard]] bool read() {
        buffer_.clear();
        bool fits = true;
        std::streambuf& bytes = *source_.rdbuf();
        for (int byte = bytes.sbumpc(); byte != std::istream::traits_type::eof(); byte = bytes.sbumpc()) {
            if (fits) buffer_ += static_cast<char>(byte);
            if (byte == '\n') break;
            if (buffer_.size() == longest_line) fits = false;
        }
        return fits;
    }
};

/// The line that answers a request.
[[nodiscard]] inline Answer answer_of(const Line& line, const Reply& reply) {
    nlohmann::ordered_json document = nlohmann::ordered_json::object();
    if (line.id) document["id"] = *line.id;
    const Error* error = error_of(reply);
    const std::function<bool(const nlohmann::ordered_json&)> finite = [&finite](const nlohmann::ordered_json& value) {
        if (value.is_number_float()) return std::isfinite(value.get<double>());
        for (const auto& item : value) {
            if (value.is_structured() && !finite(item)) return false;
        }
        return true;
    };
    const Error not_finite(ErrorKind::unscorable, "the model gave a number that is not finite");
    if (error == nullptr && !finite(std::get<nlohmann::ordered_json>(reply))) error = &not_finite;
    if (error != nullptr) {
        document["error"] = error->what();
        document["line"] = line.number;
    } else {
        document.update(std::get<nlohmann::ordered_json>(reply));
    }
    return {json_text(document), error != nullptr};
}

/// Answers the lines of `source`, a chunk at a time; `write` is given the answers of each. Throws Error that is no single
/// line's fault.
inline void answer_lines(const Model& model, std::istream& source, bool ranking,
                         const std::function<void(const std::vector<Answer>&)>& write) {
    LineReader reader(source, ranking);
    while (true) {
        std::vector<Line> chunk;
        std::size_t size = 0;
        while (chunk.size() < chunk_lines && size < chunk_bytes) {
            auto line = reader.next();
            if (!line) break;
            size += line->size;
            chunk.push_back(std::move(*line));
        }
        if (chunk.empty()) return;
        std::vector<Request> requests;
        for (const Line& line : chunk) {
            if (error_of(line.request) == nullptr) requests.push_back(std::get<Request>(line.request));
        }
        const std::vector<Reply> replies = Answers::of(model, requests);
        std::vector<Answer> answers;
        auto next = replies.begin();
        for (const Line& line : chunk) {
            const Error* const error = error_of(line.request);
            answers.push_back(answer_of(line, error == nullptr ? *next++ : Reply(*error)));
        }
        write(answers);
    }
}

}  // namespace rm_runtime
