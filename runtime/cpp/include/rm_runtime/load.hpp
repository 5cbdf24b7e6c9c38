// load: a bundle folder -> a model that scores.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <variant>

#include "families/opened.hpp"
#include "families/pair_pm.hpp"
#include "families/pairrm.hpp"
#include "families/pointwise.hpp"

namespace rm_runtime {

/// A loaded bundle of any family: what it can do differs, so ask with std::get_if or std::visit.
using Model = std::variant<PointwiseModel, PairPM, PairRM>;

/// Loads a bundle into a model of its family's kind, and scores one short chat, which warms the engine up and finds weights
/// that are not finite. Throws Error (bundle) if the bundle is damaged, Error (engine) if ONNX Runtime cannot run it.
[[nodiscard]] inline Model load(const std::filesystem::path& path, const LoadOptions& options = {}) {
    Opened opened = Opened::open(path, options);
    const std::string family = opened.bundle.manifest.family;
    if (family == "pair-pm") return Model(std::in_place_type<PairPM>, std::move(opened));
    if (family == "pairrm") return Model(std::in_place_type<PairRM>, std::move(opened));
    return Model(std::in_place_type<PointwiseModel>, std::move(opened));
}

/// Loads a bundle of a family that scores single conversations. Throws Error (request) for another family.
[[nodiscard]] inline PointwiseModel load_pointwise(const std::filesystem::path& path, const LoadOptions& options = {}) {
    Opened opened = Opened::open(path, options);
    const std::string& family = opened.bundle.manifest.family;
    if (family == "pair-pm" || family == "pairrm") {
        throw Error(ErrorKind::request, "a " + family + " model compares answers and cannot score one alone; use rank");
    }
    return PointwiseModel(std::move(opened));
}

}  // namespace rm_runtime
