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
import math
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

import full_size
from rm_calibration.conversations import default_conversations
from rm_export.calibrate import CalibrationOptions
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_export.quantisation import Quantisation
from rm_runtime.bundle import open_bundle
from rm_runtime.engines import open_engine
from rm_runtime.engines.choice import cpu_flags

Ids = NDArray[np.int64]
Run = Callable[[Ids], object]

LAYERS = 2
SHAPES = ((1, 128), (1, 512), (4, 512))
ROUNDS = 2
ROUND_SECONDS = 0.3
"""A round repeats a run for at least so long."""
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


def hugging_face(kind: Any, checkpoint: Path, dtype: torch.dtype) -> Run:
    """The same layers in transformers, with its fastest attention for that model."""
    model = kind(kind.config_class.from_pretrained(checkpoint)).to(dtype).eval()

    def run(ids: Ids) -> object:
        with torch.inference_mode():
            return model(torch.from_numpy(ids), attention_mask=torch.ones(ids.shape, dtype=torch.int64))

    return run


def exported(bundle: Path, engine: str, threads: int) -> Run:
    opened = open_engine(open_bundle(bundle), engine, threads)
    return lambda ids: opened.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})


def opened_runs(backbone: str, folder: Path, threads: int) -> dict[str, Run]:
    """Everything that is compared, by name."""
    write, kind = BACKBONES[backbone]
    checkpoint = open_checkpoint(write(folder / "checkpoint", LAYERS))
    runs = {
        REFERENCE: hugging_face(kind, checkpoint.folder, torch.float32),
        "HF bfloat16": hugging_face(kind, checkpoint.folder, torch.bfloat16),
    }
    for precision, engines in ENGINES.items():
        bundle = export_checkpoint(checkpoint, folder / precision, precision=precision, quantisation=CALIBRATION)
        runs |= {f"{engine} {precision}": exported(bundle, engine, threads) for engine in engines}
    return runs


def fastest(runs: Mapping[str, Run], ids: Ids, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of each run in its fastest round, after one that warms it up."""
    best = dict.fromkeys(runs, math.inf)
    for run in runs.values():
        run(ids)
    for _ in range(ROUNDS):
        for name, run in runs.items():
            began, repeats = clock(), 0
            while clock() < began + ROUND_SECONDS:
                run(ids)
                repeats += 1
            best[name] = min(best[name], (clock() - began) / repeats)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    flags = sorted(cpu_flags() & {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"})
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
