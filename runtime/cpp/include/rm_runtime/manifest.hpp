// bundle.json: what a bundle is. docs/bundle.md and runtime/rm_runtime/bundle.schema.json define it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "json.hpp"
#include "manifest_fields.hpp"
#include "manifest_prompt.hpp"
#include "prompt_spec.hpp"

namespace rm_runtime {

inline constexpr int format_version = 1;

struct FileRecord {
    std::uint64_t size = 0;
    std::string sha256;
};

struct Manifest {
    std::string family;
    std::string precision;
    std::string target;
    std::map<std::string, FileRecord> files;    ///< by path relative to the bundle
    std::map<std::string, std::string> graphs;  ///< role -> file; "plain" is the one that is run here
    std::vector<std::string> outputs;
    std::int64_t pad_token_id = 0;
    PromptSpec prompt;
    Json architecture;
    Json parameters;  ///< the family's own constants

    /// Parses and checks bundle.json. where: what errors call it. Throws Error (bundle) that names the field.
    [[nodiscard]] static Manifest from_json(std::string_view source, const std::string& where) {
        Json document;
        try {
            document = parse_json(source);
        } catch (const Error& error) {
            throw Error(ErrorKind::bundle, where + " is not JSON (" + error.what() + "); export the bundle again");
        }
        if (!document.is_object()) {
            throw Error(ErrorKind::bundle, where + " holds " + json_type(document) + ", not an object; export the bundle again");
        }
        const Json version = document.value("format", Json());
        if (!version.is_number() || version.get<double>() != format_version) {
            throw Error(ErrorKind::bundle, where + " has format version " + version.dump().substr(0, 40) +
                                               ", this rm_runtime reads " + std::to_string(format_version) +
                                               "; install a matching rm-export or export the bundle again");
        }
        return checked(Field(document, "", where));
    }

private:
    static Manifest checked(const Field& top) {
        top.object({"format", "family", "source", "precision", "recipe", "target", "architecture", "graphs", "graph",
                    "pooling", "pad_token_id", "prompt", "parameters", "files", "tools", "parity"},
                   {"engines"});
        Manifest manifest;
        manifest.family = top.at("family").one_of({"armorm", "grm", "pairrm", "pair-pm", "dpa-rm", "scalar"});
        manifest.precision = top.at("precision").one_of({"fp32", "fp16", "bf16", "int8", "w8", "w4", "fp8"});
        manifest.target = top.at("target").one_of({"cpu", "cuda", "tensorrt"});
        for (const auto& [name, field] : top.at("files").members()) {
            if (!Field::is_plain_path(name)) field.refuse("it is no plain path inside the bundle");
            field.object({"size", "sha256"});
            manifest.files[name] = {static_cast<std::uint64_t>(field.at("size").whole(0)), field.at("sha256").sha256()};
        }
        const Field graphs = top.at("graphs");
        for (const auto& [role, field] : graphs.members()) manifest.graphs[role] = field.path();
        if (manifest.graphs.count("plain") == 0) graphs.refuse("'plain' is missing");
        const Field graph = top.at("graph").object({"opset", "inputs", "outputs"});
        (void)graph.at("opset").whole(1);
        tensor_names(graph.at("inputs"));
        manifest.outputs = tensor_names(graph.at("outputs"));
        (void)top.at("pooling").one_of({"FIRST-PAD", "LAST-NONPAD", "MASK-SUM", "PREFIX-TOKENS", "FIRST-TOKEN"});
        manifest.pad_token_id = top.at("pad_token_id").whole(0);
        manifest.prompt = read_prompt(top.at("prompt"));
        manifest.architecture = object_of(top, "architecture");
        manifest.parameters = object_of(top, "parameters");
        check_what_is_not_used(top);
        return manifest;
    }

    static Json object_of(const Field& top, const char* name) {
        const Field field = top.at(name);
        field.check(field.json().is_object(), "an object");
        return field.json();
    }

    static std::vector<std::string> tensor_names(const Field& tensors) {
        std::vector<std::string> names;
        for (const Field& tensor : tensors.items()) {
            tensor.object({"name", "dtype", "shape"});
            (void)tensor.at("dtype").one_of({"int64", "float32"});
            for (const Field& size : tensor.at("shape").items()) {
                size.check(size.json().is_string() || size.json().is_number_integer(), "a size");
            }
            names.push_back(tensor.at("name").string());
        }
        if (names.empty()) tensors.refuse("it is empty");
        return names;
    }

    static void check_what_is_not_used(const Field& top) {
        const Field source = top.at("source").object({"id", "revision", "config_sha256"});
        (void)source.at("id").string();
        if (const auto revision = source.maybe("revision")) (void)revision->string();
        (void)source.at("config_sha256").sha256();
        if (const auto recipe = top.maybe("recipe")) (void)recipe->string();
        for (const auto& [tool, version] : top.at("tools").members()) (void)version.string();
        if (const auto parity = top.maybe("parity")) parity->check(parity->json().is_object(), "an object or null");
        if (top.json().contains("engines")) {
            for (const Field& plan : top.at("engines").items()) {
                plan.object({"graph", "graph_sha256", "runtime", "version", "compute_capability", "stripped", "file",
                             "profiles"});
                (void)plan.at("file").path();
            }
        }
    }
};

}  // namespace rm_runtime
