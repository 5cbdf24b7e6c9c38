"""What INT8 does to preferences: `python benchmarks/int8_quality.py [--json F]`.

Two checkpoints: the demo, and a hardened copy of it (`harden`: the same function in float, with outlier channels of 32
to 128 times in every norm and MLP, as large decoders have them). Several ways to quantise, judged on held-out pairs
of the demo's own generator that neither training nor calibration saw. Every row is the finished bundle on its engine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from rm_calibration.comparison import compare_scores
from rm_calibration.conversations import Example
from rm_calibration.smoothing import ALPHAS
from rm_export.calibrate import CalibrationOptions
from rm_export.checkpoint import open_checkpoint
from rm_export.demo import checkpoint_path
from rm_export.demo.preferences import comparisons
from rm_export.exporter import export_checkpoint
from rm_export.quantisation import Quantisation
from rm_runtime import load

JUDGING_PAIRS = 500
CALIBRATION_PAIRS = 64
OUTLIERS = (32.0, 64.0, 128.0)
"""Factors of outlier channels: powers of two, so that the hardened copy is the same function to the bit."""

METHODS: dict[str, CalibrationOptions | None] = {
    "naive min-max W8A8": CalibrationOptions(observer="minmax", alphas=(0.0,), max_flip_rate=1.0),
    "MSE clipping only": CalibrationOptions(observer="mse", alphas=(0.0,), max_flip_rate=1.0),
    "SmoothQuant, alpha 0.5": CalibrationOptions(observer="minmax", alphas=(0.5,), max_flip_rate=1.0),
    "alpha search, no budget": CalibrationOptions(observer="mse", alphas=ALPHAS, max_flip_rate=1.0),
    "default": CalibrationOptions(),
    "w8 (weights only)": None,
    "w4 (weights only)": None,
}


def harden(source: Path, folder: Path) -> Path:
    """A copy with outlier channels: norm weights and up_proj times 32 to 128, what reads them divided by as much."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(0)
    layers = sum(name.endswith("input_layernorm.weight") for name in tensors)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        readers = {
            "input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
        }
        for norm, products in readers.items():
            name = f"{prefix}{norm}.weight"
            channels = rng.choice(tensors[name].size, size=len(OUTLIERS), replace=False)
            tensors[name] = scaled(tensors[name], channels, axis=0, up=True)
            for product in products:
                weight = f"{prefix}{product}.weight"
                tensors[weight] = scaled(tensors[weight], channels, axis=1, up=False)
        up, down = f"{prefix}mlp.up_proj.weight", f"{prefix}mlp.down_proj.weight"
        channels = rng.choice(tensors[up].shape[0], size=len(OUTLIERS), replace=False)
        tensors[up] = scaled(tensors[up], channels, axis=0, up=True)
        tensors[down] = scaled(tensors[down], channels, axis=1, up=False)
    save_file(tensors, folder / "model.safetensors")
    return folder


def scaled(tensor: NDArray[Any], channels: NDArray[np.intp], axis: int, up: bool) -> NDArray[Any]:
    """The tensor with three channels along an axis multiplied (or divided) by OUTLIERS, exactly."""
    factors = np.ones(tensor.shape[axis], np.float32)
    factors[channels] = OUTLIERS
    shape = [1] * tensor.ndim
    shape[axis] = -1
    wide = tensor.astype(np.float32)
    wide = wide * factors.reshape(shape) if up else wide / factors.reshape(shape)
    return wide.astype(ml_dtypes.bfloat16)


def conversations(count: int, seed: int, split: str) -> list[list[dict[str, str]]]:
    """Chats of the demo's generator: every answer of `count` comparisons."""
    return [answer for one in comparisons(count, seed, split) for answer in (one.chat(a) for a in one.answers)]


def scores_of(bundle: Path, chats: list[list[dict[str, str]]]) -> NDArray[np.float64]:
    return np.array([score.score for score in load(bundle).score(chats)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    judging = conversations(JUDGING_PAIRS, seed=4242, split="held_out")
    examples = [Example(tuple(chat)) for chat in conversations(CALIBRATION_PAIRS, seed=777, split="train")]
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        models = {"demo": checkpoint_path(), "hardened": harden(checkpoint_path(), Path(folder) / "hardened")}
        for model, path in models.items():
            checkpoint = open_checkpoint(path)
            expected = scores_of(export_checkpoint(checkpoint, Path(folder) / f"{model}-float"), judging)
            if model == "demo":
                original = expected
            print(f"{model:9} float: differs from the demo by at most {np.abs(expected - original).max():.1e}")
            for method, options in METHODS.items():
                bundle = export_checkpoint(
                    checkpoint,
                    Path(folder) / f"{model}-{method}",
                    precision="int8" if options else method[:2],
                    quantisation=Quantisation(examples=examples, options=options or CalibrationOptions()),
                )
                agreement = compare_scores(expected, scores_of(bundle, judging))
                recipe = (bundle / "recipe.yaml").read_text() if options else ""
                row = {
                    "clear_flips_%": 100 * agreement.order.clear_flips / agreement.order.clear_pairs,
                    "spearman": agreement.spearman,
                    "max_error_std": agreement.max_error / agreement.std,
                    "mean_error_std": agreement.mean_error / agreement.std,
                    "float_products": recipe.count("decision: float"),
                }
                figures[f"{model}, {method}"] = row
                print(
                    f"{model:9} {method:24} clear flips {row['clear_flips_%']:6.2f} %  Spearman {row['spearman']:.5f}  "
                    f"error/std max {row['max_error_std']:.3f} mean {row['mean_error_std']:.4f}  "
                    f"{row['float_products']} products in float",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
