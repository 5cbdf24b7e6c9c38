// rm_score BUNDLE < chats.jsonl: the lines, answers and exit statuses of `rm-runtime score`.
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "rm_runtime.hpp"

namespace {

constexpr const char* usage =
    "usage: rm_score BUNDLE [options] < chats.jsonl\n"
    "\n"
    "Answers every JSON line with its scores. A line is {\"messages\": [...]}, with \"responses\": [...] to rank answers, for\n"
    "PairRM {\"input\": ..., \"candidates\": [...]}, or {\"text\": ...} for a chat that is rendered already. A line that fails\n"
    "gives {\"error\": ..., \"line\": n} in its place.\n"
    "\n"
    "  -i F                             read this file instead of the standard input\n"
    "  --rank                           refuse lines without responses\n"
    "  --threads N                      of ONNX Runtime; default: all that this process may use\n"
    "  --batch-tokens N                 ids a batch may hold, padding included\n"
    "  --no-share-prefixes              compute every row in full: a second graph takes memory of its own\n"
    "  --truncation cut|error           what happens to a prompt that is too long\n"
    "  --special-text token|text|error  what a typed \"<|eot_id|>\" is\n"
    "  --verify                         check the hash of every file of the bundle first\n"
    "\n"
    "Exit status: 0; 1 if a line or the run failed; 2 for misuse.\n";

struct Misuse {
    std::string message;
};

struct Arguments {
    std::string bundle;
    std::optional<std::string> input;
    bool ranking = false;
    rm_runtime::LoadOptions options;
};

int whole_number(const std::string& option, const std::string& value) {
    int number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error != std::errc() || end != value.data() + value.size() || number < 1) {
        throw Misuse{option + " " + value + ": a whole number of at least 1"};
    }
    return number;
}

template <class Choice>
Choice choice(const std::string& option, const std::string& value, const std::vector<std::pair<const char*, Choice>>& choices) {
    std::string known;
    for (const auto& [name, meant] : choices) {
        if (value == name) return meant;
        known += (known.empty() ? "" : ", ") + std::string(name);
    }
    throw Misuse{option + " " + value + ": one of " + known};
}

Arguments parse(const std::vector<std::string>& words) {
    using rm_runtime::SpecialText;
    using rm_runtime::TooLong;
    Arguments parsed;
    for (std::size_t i = 0; i < words.size(); ++i) {
        const std::string& word = words[i];
        const auto value = [&]() -> const std::string& {
            if (i + 1 == words.size()) throw Misuse{word + " needs a value"};
            return words[++i];
        };
        if (word == "-i") {
            parsed.input = value();
        } else if (word == "--rank") {
            parsed.ranking = true;
        } else if (word == "--verify") {
            parsed.options.verify = true;
        } else if (word == "--no-share-prefixes") {
            parsed.options.share_prefixes = false;
        } else if (word == "--threads") {
            parsed.options.threads = whole_number(word, value());
        } else if (word == "--batch-tokens") {
            parsed.options.batch_tokens = static_cast<std::size_t>(whole_number(word, value()));
        } else if (word == "--truncation") {
            parsed.options.too_long = choice<TooLong>(word, value(), {{"cut", TooLong::cut}, {"error", TooLong::error}});
        } else if (word == "--special-text") {
            parsed.options.special_text = choice<SpecialText>(
                word, value(),
                {{"token", SpecialText::token}, {"text", SpecialText::text}, {"error", SpecialText::error}});
        } else if (word.size() > 1 && word[0] == '-') {
            throw Misuse{"no such option: " + word};
        } else if (parsed.bundle.empty()) {
            parsed.bundle = word;
        } else {
            throw Misuse{"unexpected argument: " + word};
        }
    }
    if (parsed.bundle.empty()) throw Misuse{"missing argument BUNDLE"};
    return parsed;
}

int score(const Arguments& arguments) {
    std::ifstream file;
    if (arguments.input) {
        file.open(*arguments.input, std::ios::binary);
        if (!file) throw Misuse{*arguments.input + " cannot be read"};
    }
    const rm_runtime::Model model = rm_runtime::load(arguments.bundle, arguments.options);
    std::size_t answered = 0;
    std::size_t failed = 0;
    const auto write = [&](const std::vector<rm_runtime::Answer>& answers) {
        for (const rm_runtime::Answer& answer : answers) {
            std::cout << answer.text << '\n';
            failed += answer.failed ? 1 : 0;
        }
        answered += answers.size();
        if (!std::cout.flush()) throw rm_runtime::Error(rm_runtime::ErrorKind::request, "the output cannot be written");
    };
    rm_runtime::answer_lines(model, arguments.input ? file : std::cin, arguments.ranking, write);
    if (failed > 0) {
        std::cerr << "rm_score: error: " << failed << " of " << answered
                  << " lines failed; the output has an \"error\" for each\n";
    }
    return failed > 0 ? 1 : 0;
}

}  // namespace

int main(int count, char** words) {
    std::ios::sync_with_stdio(false);
    const std::vector<std::string> arguments(words + 1, words + count);
    for (const std::string& word : arguments) {
        if (word == "-h" || word == "--help") {
            std::cout << usage;
            return 0;
        }
    }
    try {
        return score(parse(arguments));
    } catch (const Misuse& misuse) {
        std::cerr << "rm_score: error: " << misuse.message << " (try rm_score --help)\n";
        return 2;
    } catch (const std::exception& error) {
        std::cerr << "rm_score: error: " << rm_runtime::text::one_line(error.what()) << '\n';
        return 1;
    }
}
