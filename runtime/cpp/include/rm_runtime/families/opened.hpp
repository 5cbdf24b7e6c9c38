// What every family's model is made of.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "../bundle.hpp"
#include "../engine.hpp"
#include "../options.hpp"
#include "../tokenizer/bundle_tokenizer.hpp"

namespace rm_runtime {

/// A checked bundle with its tokenizer and its graph, ready to run.
struct Opened {
    Bundle bundle;
    LoadOptions options;
    std::shared_ptr<const BundleTokenizer> tokenizer;
    std::shared_ptr<const Engine> engine;

    /// Throws Error (bundle) if the bundle is damaged, Error (engine) if ONNX Runtime cannot run it.
    [[nodiscard]] static Opened open(const std::filesystem::path& path, const LoadOptions& options) {
        Opened opened{Bundle::open(path, options.verify), options, nullptr, nullptr};
        const std::string where = (path / tokenizer_name).string();
        opened.tokenizer = std::make_shared<BundleTokenizer>(opened.bundle.tokenizer_json(), options.tokenizer, where);
        opened.engine = std::make_shared<Engine>(opened.bundle, options);
        return opened;
    }

    /// The outputs of a name. Throws Error (bundle) if the manifest does not list it.
    [[nodiscard]] const std::vector<std::vector<float>>& output(const Outputs& outputs, const std::string& name,
                                                                std::size_t least) const {
        const auto found = outputs.find(name);
        if (found == outputs.end()) fail("lists no output " + text::quoted(name));
        for (const auto& row : found->second) {
            if (row.size() < least) fail("has an output " + text::quoted(name) + " of too few values");
        }
        return found->second;
    }

    [[noreturn]] void fail(const std::string& why) const {
        throw Error(ErrorKind::bundle, bundle.path.string() + " " + why + "; export the bundle again");
    }
};

}  // namespace rm_runtime
