"""Which engine is fastest on this CPU, by precision: `python benchmarks/engines.py [--json F] [--threads N]`.

Two layers of each backbone at full width with random weights (benchmarks/full_size.py), so that a layer's speed is
measured and not the download. All engines and precisions take turns on the same ids; the fastest round counts. With one
thread, the default, CPU time is counted, so that other work on the machine does not enter; with more threads wall time,
which wants an idle machine. Ratios are to Hugging Face's float32 in the same run. About five minutes.
The rule of engine="auto" (rm_runtime/engines/choice.py) rests on this table.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import full_size
from rm_calibration.conversations import default_conversations
from rm_export.calibrate import CalibrationOptions
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_export.quantisation import Quantisation
from turns import SHAPES, Run, clock_for, exported, fastest, hugging_face, measured_flags

LAYERS = 2
BACKBONES = {
    "Llama-3.2-1B": (full_size.llama_1b, transformers.LlamaForSequenceClassification),
    "DeBERTa-v3-large": (full_size.pairrm_layers, transformers.DebertaV2Model),
}
ENGINES = {
    "fp32": ("onnxruntime", "openvino", "openvino-bf16"),
    "fp16": ("onnxruntime", "openvino"),
    "int8": ("onnxruntime", "openvino", "openvino-bf16"),
    "w8": ("onnxruntime", "openvino"),
    "w4": ("onnxruntime", "openvino"),
}
REFERENCE = "HF float32"
CALIBRATION = Quantisation(
    examples=default_conversations()[:8],
    options=CalibrationOptions(observer="minmax", alphas=(0.0,), max_flip_rate=1.0),
)
"""Speed does not depend on the scales."""


def random_model(kind: Any, checkpoint: Path, dtype: torch.dtype) -> Run:
    """The same layers in transformers, with its fastest attention for that model."""
    return hugging_face(kind(kind.config_class.from_pretrained(checkpoint)).to(dtype).eval())


def opened_runs(backbone: str, folder: Path, threads: int) -> dict[str, Run]:
    """Everything that is compared, by name."""
    write, kind = BACKBONES[backbone]
    checkpoint = open_checkpoint(write(folder / "checkpoint", LAYERS))
    runs = {
        REFERENCE: random_model(kind, checkpoint.folder, torch.float32),
        "HF bfloat16": random_model(kind, checkpoint.folder, torch.bfloat16),
    }
    for precision, engines in ENGINES.items():
        bundle = export_checkpoint(checkpoint, folder / precision, precision=precision, quantisation=CALIBRATION)
        runs |= {f"{engine} {precision}": exported(bundle, engine, threads) for engine in engines}
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    clock = clock_for(arguments.threads)
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    flags = measured_flags()
    figures: dict[str, Any] = {"machine": platform.platform(), "flags": flags, "threads": arguments.threads}
    print(f"{arguments.threads} threads, {' '.join(flags)}; milliseconds (times the speed of {REFERENCE})")
    for backbone in BACKBONES:
        with tempfile.TemporaryDirectory() as folder:
            runs = opened_runs(backbone, Path(folder), arguments.threads)
            seconds = {
                f"B{batch} S{length}": fastest(runs, rng.integers(5, 900, size=(batch, length)), clock)
                for batch, length in SHAPES
            }
        figures[backbone] = seconds
        print(f"\n| {backbone}, {LAYERS} layers | {' | '.join(seconds)} |\n|---|{'---|' * len(seconds)}")
        for name in runs:
            cells = [f"{1000 * of[name]:.0f} ({of[REFERENCE] / of[name]:.2f}x)" for of in seconds.values()]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
