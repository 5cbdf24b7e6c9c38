"""What INT8 does to preferences, the table of docs/int8.md: `python benchmarks/int8_quality.py [--json F]`.

Checkpoints made hard to quantise (hardening.py, massive_token.py), several ways to quantise each, judged on held-out
comparisons that neither training nor calibration saw. Every row is the finished bundle on ONNX Runtime; of the default,
how OpenVINO decides with the same bundle too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_ranges import activation_ranges
from quality_models import MEASURED_ROWS, Model, models
from rm_calibration.recipe import Recipe
from rm_export.calibrate import CalibrationOptions
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_export.quantisation import Quantisation

SAME_FUNCTION = 1e-5
"""The largest error, in standard deviations, that a hardened copy may have in float32."""

OTHER_ENGINES = ("openvino", "openvino-bf16")
"""That run the default's bundle too."""

METHODS: dict[str, dict[str, Any] | None] = {
    "naive min-max W8A8": {"observer": "minmax", "alphas": (0.0,), "max_flip_rate": 1.0},
    "MSE clipping only": {"observer": "mse", "alphas": (0.0,), "max_flip_rate": 1.0},
    "SmoothQuant, alpha 0.5": {"observer": "minmax", "alphas": (0.5,), "max_flip_rate": 1.0},
    "default": {},
    "w8, weights only": None,
    "w4, weights only": None,
}
"""CalibrationOptions, or None for weights only."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoints", type=Path, help="folder of the trained judges, filled where they are missing")
    parser.add_argument("--models", nargs="*", help="only models whose names contain one of these")
    parser.add_argument("--methods", nargs="*", help="only methods whose names contain one of these")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        makers = models(Path(folder), arguments.checkpoints or Path(folder) / "trained", arguments.threads)
        for name in [name for name in makers if _chosen(name, arguments.models)]:
            methods = [method for method in METHODS if _chosen(method, arguments.methods)]
            bundles = Path(folder) / "bundles" / name
            figures[name] = judged(name, makers[name](), methods, bundles, arguments.threads)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def judged(name: str, model: Model, methods: Sequence[str], folder: Path, threads: int) -> dict[str, Any]:
    """Print and return the figures of one model. Raises SystemExit if a hardened copy is another function."""
    folder.mkdir(parents=True)
    expected, error = float_answers(model, folder, threads)
    print(f"\n{name}: {len(expected)} answers, in float within {error:.1e} deviations of the original", flush=True)
    if error > SAME_FUNCTION:
        raise SystemExit(f"{name} is not the function it was made from: {error:.1e} > {SAME_FUNCTION}")
    ranges = {}
    if open_checkpoint(model.checkpoint).config["model_type"] == "llama":
        ranges = activation_ranges(model.checkpoint, model.asked.rows[:MEASURED_ROWS])
        for activation, range_ in ranges.items():
            print(
                f"  {activation:25} first token {range_.first:7.1f} medians, others {range_.others:7.1f}, "
                f"widest channel {range_.channel:6.1f}"
            )
    rows = {}
    for method in methods:
        began, options = time.perf_counter(), METHODS[method]
        bundle = export_checkpoint(
            open_checkpoint(model.checkpoint),
            folder / method,
            precision=method[:2] if options is None else "int8",
            quantisation=Quantisation(
                examples=model.calibrating, options=CalibrationOptions(**(options or {}), threads=threads)
            ),
        )
        answers = model.asked.answers(bundle, threads)
        row = model.asked.agreement(expected, answers)
        gemms = Recipe.from_yaml((bundle / "recipe.yaml").read_bytes()).gemms.values() if options is not None else ()
        row |= {
            "float_products": sum(gemm.decision == "float" for gemm in gemms),
            "seconds": time.perf_counter() - began,
        }
        rows[method] = row
        print(
            f"| {name} | {method} | {row['clear_flips_%']:.2f} % | {row['spearman']:.5f} | "
            f"{row['max_error_std']:.3f} | {row['mean_error_std']:.4f} | {row['float_products']} |",
            flush=True,
        )
        if method == "default":
            for engine in OTHER_ENGINES:
                others = model.asked.answers(bundle, threads, engine)
                for against, reference in (("ONNX Runtime", answers), ("float32", expected)):
                    row[f"{engine} against {against}"] = found = model.asked.agreement(reference, others)
                    flips = f"flips {found['flips_%']:.3f} %, clear flips {found['clear_flips_%']:.3f} %"
                    print(f"  {engine} against {against}: {flips}", flush=True)
    return {
        "float_error_std": error,
        "answers": len(expected),
        "ranges": {activation: vars(range_) for activation, range_ in ranges.items()},
        "methods": rows,
    }


def float_answers(model: Model, folder: Path, threads: int) -> tuple[NDArray[np.float64], float]:
    """The float answers of the model, and how far they are from its original's at most, in standard deviations."""
    original, own = (
        model.asked.answers(export_checkpoint(open_checkpoint(path), folder / name), threads)
        for name, path in (("original", model.original), ("float", model.checkpoint))
    )
    return own, float(np.abs(own - original).max() / original.std())


def _chosen(name: str, wanted: Sequence[str] | None) -> bool:
    return not wanted or any(part in name for part in wanted)


if __name__ == "__main__":
    main()
