// libFuzzer's target: a manifest, a JSON line or a tokenizer.json (the first byte says which) is read or refused in one line.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "rm_runtime.hpp"

namespace {

void read(char kind, std::string_view source) {
    using namespace rm_runtime;
    if (kind == 'm') {
        const Manifest manifest = Manifest::from_json(source, "bundle.json");
        if (const auto* const prompt = std::get_if<ChatPrompt>(&manifest.prompt); prompt != nullptr && prompt->pieces) {
            (void)prompt->pieces->render({{"system", " s "}, {"user", "u"}, {"assistant", ""}});
        }
    } else if (kind == 't') {
        const BundleTokenizer tokenizer(std::string(source), {}, "tokenizer.json");
        (void)tokenizer.encode("Hello, w\xC3\xB6rld 42! <|eot_id|>");
    } else {
        const Line line = read_line(1, source, false);
        const Answer answer = answer_of(line, Reply(nlohmann::ordered_json{{"score", 0.5}}));
        if (parse_json(answer.text).is_object() == false) std::abort();
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size) {
    if (size == 0) return 0;
    try {
        read(static_cast<char>(input[0]), {reinterpret_cast<const char*>(input) + 1, size - 1});
    } catch (const rm_runtime::Error& error) {
        if (std::string_view(error.what()).find('\n') != std::string_view::npos) std::abort();
    }
    return 0;
}
