// plugged_in BUNDLE: scores a chat from several threads at once, through a tokenizer of the caller's. For tests.
#include <atomic>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "rm_runtime.hpp"

namespace {

std::atomic<int> encoded{0};

/// Somebody else's tokenizer: counts, and lets another one work.
class Counting final : public rm_runtime::Tokenizer {
public:
    explicit Counting(const std::string& json) : inner_(rm_runtime::parse_json(json)) {}

    [[nodiscard]] rm_runtime::Ids encode(std::string_view text) const override {
        ++encoded;
        return inner_.encode(text);
    }

private:
    rm_runtime::JsonTokenizer inner_;
};

}  // namespace

int main(int, char** arguments) {
    int made = 0;
    rm_runtime::LoadOptions options;
    options.threads = 1;
    options.special_text = rm_runtime::SpecialText::text;
    options.tokenizer = [&made](const std::string& json) {
        ++made;
        return std::make_shared<Counting>(json);
    };
    const rm_runtime::PointwiseModel model = rm_runtime::load_pointwise(arguments[1], options);
    const int at_load = encoded;
    const rm_runtime::Messages chat = {{"user", "What does <|eot_id|> mean?"}, {"assistant", "The end of a turn."}};
    std::vector<double> scores(4);
    std::vector<std::thread> threads;
    for (double& score : scores) {
        threads.emplace_back([&model, &chat, &score] { score = rm_runtime::value_of(model.score({chat}).front()).score; });
    }
    for (std::thread& thread : threads) thread.join();
    std::cout.precision(17);
    for (const double score : scores) std::cout << score << '\n';
    std::cout << made << ' ' << (at_load > 0) << ' ' << encoded - at_load << '\n';
    return 0;
}
