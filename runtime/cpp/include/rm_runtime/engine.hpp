// ONNX Runtime: rows of ids -> outputs by name.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "batching.hpp"
#include "bundle.hpp"
#include "options.hpp"
#include "shared_prefixes.hpp"

namespace rm_runtime {

/// The bundle's plain graph and, from when it first pays, its graph of shared prefixes. Safe to share between threads.
class Engine {
public:
    /// Throws Error (engine) if this ONNX Runtime cannot run the bundle.
    Engine(const Bundle& bundle, const LoadOptions& options)
        : environment_(ORT_LOGGING_LEVEL_ERROR, "rm_runtime"), options_(session_options(bundle.manifest, options)),
          outputs_(bundle.manifest.outputs), pad_token_id_(bundle.manifest.pad_token_id), batch_tokens_(options.batch_tokens) {
        if (batch_tokens_ == 0) {
            const bool encodes = bundle.manifest.architecture.value("model_type", Json()) == "deberta-v2";
            batch_tokens_ = encodes ? encoder_batch_tokens : default_batch_tokens;
        }
        if (bundle.manifest.precision == "bf16") {
            throw Error(ErrorKind::engine, "ONNX Runtime has no bf16 attention on the CPU; export with --precision fp32 or "
                                           "fp16 or int8 or w8 or w4");
        }
        const auto prefix = bundle.manifest.graphs.find("prefix");
        if (options.share_prefixes && prefix != bundle.manifest.graphs.end()) prefix_path_ = bundle.path / prefix->second;
        plain_ = opened(bundle.path / bundle.manifest.graphs.at("plain"), 2);
    }

    /// Outputs of rows, in the rows' own order; rows that cannot be scored are NaN. Throws Error (engine).
    [[nodiscard]] Outputs run(const std::vector<Ids>& rows) const {
        Outputs results;
        for (const std::string& name : outputs_) results[name].resize(rows.size());
        std::vector<std::size_t> full(rows.size());
        std::iota(full.begin(), full.end(), std::size_t{0});
        if (!prefix_path_.empty()) {
            SharedPrefixPlan plan(rows, batch_tokens_, max_padding);
            for (const PrefixBatch& batch : plan.batches) run_batch(prefix_session(), rows, batch.rows, batch.prefix, results);
            full = std::move(plan.full);
        }
        std::vector<std::size_t> lengths;
        for (const std::size_t row : full) lengths.push_back(rows[row].size());
        for (std::vector<std::size_t>& batch : plan_batches(lengths, batch_tokens_)) {
            for (std::size_t& place : batch) place = full[place];
            run_batch(plain_, rows, batch, 0, results);
        }
        return results;
    }

private:
    Ort::Env environment_;
    Ort::SessionOptions options_;
    std::vector<std::string> outputs_;
    std::int64_t pad_token_id_;
    std::size_t batch_tokens_;
    std::filesystem::path prefix_path_;  ///< empty: no prefixes are shared
    // sessions' Run is not const, and may be called from several threads
    mutable Ort::Session plain_{nullptr};
    mutable Ort::Session prefix_{nullptr};
    mutable std::once_flag prefix_once_;

    static Ort::SessionOptions session_options(const Manifest& manifest, const LoadOptions& options) {
        Ort::SessionOptions session;
        const auto cores = static_cast<int>(std::thread::hardware_concurrency());
        session.SetIntraOpNumThreads(options.threads > 0 ? options.threads : std::max(1, cores));
        session.SetInterOpNumThreads(1);
        session.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
        if (manifest.precision == "fp8") {
            // its fusions into integer products take float8 for int8 (onnxruntime#22269)
            session.AddConfigEntry("session.disable_quant_qdq", "1");
        }
        return session;
    }

    [[nodiscard]] Ort::Session opened(const std::filesystem::path& path, std::size_t inputs) const {
        Ort::Session session{nullptr};
        try {
            session = Ort::Session(environment_, path.c_str(), options_);
        } catch (const std::exception& error) {
            throw Error(ErrorKind::engine, "ONNX Runtime cannot load " + path.string() + ": " + shortened(error.what()));
        }
        if (session.GetInputCount() != inputs) {
            throw Error(ErrorKind::bundle, path.string() + " has " + std::to_string(session.GetInputCount()) +
                                               " inputs, its contract has " + std::to_string(inputs) + "; export it again");
        }
        return session;
    }

    [[nodiscard]] Ort::Session& prefix_session() const {
        std::call_once(prefix_once_, [this] { prefix_ = opened(prefix_path_, 3); });
        return prefix_;
    }

    void run_batch(Ort::Session& session, const std::vector<Ids>& rows, const std::vector<std::size_t>& batch,
                   std::size_t prefix, Outputs& results) const {
        PaddedBatch padded(rows, batch, prefix, pad_token_id_);
        Ids prefix_ids(rows[batch[0]].begin(), rows[batch[0]].begin() + static_cast<std::ptrdiff_t>(prefix));
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        const auto tensor = [&memory](Ids& values, std::size_t height) {
            const std::array<std::int64_t, 2> shape = {static_cast<std::int64_t>(height),
                                                       static_cast<std::int64_t>(values.size() / height)};
            return Ort::Value::CreateTensor<std::int64_t>(memory, values.data(), values.size(), shape.data(), shape.size());
        };
        std::vector<const char*> input_names = {"input_ids", "attention_mask"};
        std::vector<Ort::Value> inputs;
        inputs.push_back(tensor(padded.input_ids, padded.rows));
        inputs.push_back(tensor(padded.attention_mask, padded.rows));
        if (prefix > 0) {
            input_names.push_back("prefix_ids");
            inputs.push_back(tensor(prefix_ids, 1));
        }
        std::vector<const char*> output_names;
        for (const std::string& name : outputs_) output_names.push_back(name.c_str());
        std::vector<Ort::Value> outputs;
        try {
            outputs = session.Run(Ort::RunOptions{nullptr}, input_names.data(), inputs.data(), inputs.size(),
                                  output_names.data(), output_names.size());
        } catch (const std::exception& error) {
            throw Error(ErrorKind::engine, "ONNX Runtime failed on a batch of " + std::to_string(padded.rows) + " x " +
                                               std::to_string(padded.width) + " ids: " + shortened(error.what()));
        }
        for (std::size_t output = 0; output < outputs_.size(); ++output) {
            const auto facts = outputs[output].GetTensorTypeAndShapeInfo();
            const std::size_t count = facts.GetElementCount();
            if (facts.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || count == 0 || count % padded.rows != 0) {
                throw Error(ErrorKind::bundle, "the graph's output " + text::quoted(outputs_[output]) +
                                                   " is not float32 by row; export the bundle again");
            }
            const float* const values = outputs[output].GetTensorData<float>();
            const std::size_t width = count / padded.rows;
            for (std::size_t place = 0; place < padded.rows; ++place) {
                results[outputs_[output]][batch[place]].assign(values + place * width, values + (place + 1) * width);
            }
        }
    }

    static std::string shortened(const std::string& message) {
        const std::string line = text::one_line(message);
        return line.size() <= 300 ? line : line.substr(0, 300) + "...";
    }
};

}  // namespace rm_runtime
