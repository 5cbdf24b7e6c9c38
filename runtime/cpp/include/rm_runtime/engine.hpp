// ONNX Runtime: rows of ids -> outputs by name.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "batching.hpp"
#include "bundle.hpp"
#include "options.hpp"

namespace rm_runtime {

/// One session over the bundle's plain graph. Safe to share between threads.
class Engine {
public:
    /// Throws Error (engine) if this ONNX Runtime cannot run the bundle.
    Engine(const Bundle& bundle, const LoadOptions& options)
        : environment_(ORT_LOGGING_LEVEL_ERROR, "rm_runtime"), outputs_(bundle.manifest.outputs),
          pad_token_id_(bundle.manifest.pad_token_id), batch_tokens_(options.batch_tokens) {
        if (batch_tokens_ == 0) {
            const bool encodes = bundle.manifest.architecture.value("model_type", Json()) == "deberta-v2";
            batch_tokens_ = encodes ? encoder_batch_tokens : default_batch_tokens;
        }
        if (bundle.manifest.precision == "bf16") {
            throw Error(ErrorKind::engine, "ONNX Runtime has no bf16 attention on the CPU; export with --precision fp32 or "
                                           "fp16 or int8 or w8 or w4");
        }
        const std::filesystem::path path = bundle.path / bundle.manifest.graphs.at("plain");
        try {
            session_ = Ort::Session(environment_, path.c_str(), session_options(bundle.manifest, options));
        } catch (const std::exception& error) {
            throw Error(ErrorKind::engine, "ONNX Runtime cannot load " + path.string() + ": " + shortened(error.what()));
        }
        const std::size_t inputs = session_.GetInputCount();
        if (inputs != 2) {
            throw Error(ErrorKind::bundle, path.string() + " has " + std::to_string(inputs) +
                                               " inputs, its contract has input_ids and attention_mask; export it again");
        }
    }

    /// Outputs of rows, in the rows' own order; rows that cannot be scored are NaN. Throws Error (engine).
    [[nodiscard]] Outputs run(const std::vector<Ids>& rows) const {
        Outputs results;
        for (const std::string& name : outputs_) results[name].resize(rows.size());
        for (const std::vector<std::size_t>& batch : plan_batches(rows, batch_tokens_)) {
            run_batch(rows, batch, results);
        }
        return results;
    }

private:
    Ort::Env environment_;
    mutable Ort::Session session_{nullptr};  // whose Run is not const, and may be called from several threads
    std::vector<std::string> outputs_;
    std::int64_t pad_token_id_;
    std::size_t batch_tokens_;

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

    void run_batch(const std::vector<Ids>& rows, const std::vector<std::size_t>& batch, Outputs& results) const {
        PaddedBatch padded(rows, batch, pad_token_id_);
        const std::array<std::int64_t, 2> shape = {static_cast<std::int64_t>(padded.rows),
                                                   static_cast<std::int64_t>(padded.width)};
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        const auto tensor = [&](Ids& values) {
            return Ort::Value::CreateTensor<std::int64_t>(memory, values.data(), values.size(), shape.data(), shape.size());
        };
        const std::array<const char*, 2> input_names = {"input_ids", "attention_mask"};
        const std::array<Ort::Value, 2> inputs = {tensor(padded.input_ids), tensor(padded.attention_mask)};
        std::vector<const char*> output_names;
        for (const std::string& name : outputs_) output_names.push_back(name.c_str());
        std::vector<Ort::Value> outputs;
        try {
            outputs = session_.Run(Ort::RunOptions{nullptr}, input_names.data(), inputs.data(), inputs.size(),
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
