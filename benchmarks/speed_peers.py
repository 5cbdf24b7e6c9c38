"""What else runs a sequence classifier on a CPU, and how fast, and how well it keeps the float model's order.

`python benchmarks/speed_peers.py [--optimum-python VENV/bin/python] [--layers N] [--threads N] [--json F]`

The first layers of two reward models at full width with random weights (benchmarks/full_size.py), the same for all:
transformers, torch.compile (inductor, one graph a shape, weights frozen into it, which is its faster way; needs gcc),
torch's dynamic int8, optimum-onnx's export and its dynamic int8 on ONNX Runtime (benchmarks/peer_optimum.py says how to
install it), and ours. All take turns on the same unpadded ids (benchmarks/turns.py); ratios are to transformers'
float32 in the same run.

Beside the speed: Spearman and flipped pairs against transformers' float32 on ROWS rows of random ids, each alone.
Random weights say how much a method rounds, not what it does to a trained model. Ours is calibrated as `rm-export
--int8` does, on CALIBRATING ids of the built-in conversations, not on such rows. Compiled models are not asked: their
arithmetic is that of the line above them, and the rows would be one more shape to compile. About ten minutes on a quiet
machine; prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch._inductor.config
import transformers
from numpy.typing import NDArray

import full_size
from rm_calibration.comparison import Agreement, compare_scores
from rm_export.calibrate import CalibrationOptions
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_export.quantisation import Quantisation
from turns import SHAPES, Ids, Run, clock_for, exported, fastest, hugging_face, measured_flags

HERE = Path(__file__).parent
REFERENCE = "transformers float32"
OPTIMUM = {
    "optimum-onnx float32, ONNX Runtime": "float",
    "optimum-onnx dynamic int8, per tensor": "int8-tensor",
    "optimum-onnx dynamic int8, per channel": "int8-channel",
}
OURS = {
    "ours fp32, ONNX Runtime": ("fp32", "onnxruntime"),
    "ours int8, ONNX Runtime": ("int8", "onnxruntime"),
    "ours int8, OpenVINO": ("int8", "openvino"),
    "ours int8, engine auto": ("int8", "auto"),
}
MODELS: dict[str, tuple[Callable[[Path, int], Path], Any]] = {
    "LlamaForSequenceClassification, Llama-3.2-1B": (
        full_size.llama_1b,
        transformers.LlamaForSequenceClassification,
    ),
    "DebertaV2ForSequenceClassification, DeBERTa-v3-large": (
        full_size.deberta_classifier,
        transformers.DebertaV2ForSequenceClassification,
    ),
}
ROWS = 100
ROW_TOKENS = 64
IDS = (5, 900)
"""Text ids of both small tokenizers."""
CALIBRATING = 2048
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Contender:
    """run: ids -> scores [batch]. first_call: wall seconds of the first run of each shape, where it compiles."""

    run: Run
    first_call: Mapping[str, float]


def torch_contenders(kind: Any, checkpoint: Path, shapes: Mapping[str, Ids]) -> dict[str, Contender]:
    """transformers, eager and compiled, and torch's dynamic int8 of it."""
    contenders = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = kind.from_pretrained(checkpoint, dtype=dtype).eval()
        name = str(dtype).removeprefix("torch.")
        contenders[f"transformers {name}"] = Contender(logits_of(model), {})
        compiled = logits_of(torch.compile(model, dynamic=False))
        first_call = {shape: seconds_of(compiled, ids) for shape, ids in shapes.items()}
        contenders[f"torch.compile {name}"] = Contender(compiled, first_call)
    model = kind.from_pretrained(checkpoint, dtype=torch.float32).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    contenders["torch dynamic int8"] = Contender(logits_of(quantised), {})
    return contenders


def logits_of(model: Any) -> Run:
    run = hugging_face(model)
    return lambda ids: run(ids).logits[:, 0].float().numpy()


def seconds_of(run: Run, ids: Ids) -> float:
    began = time.perf_counter()
    run(ids)
    return time.perf_counter() - began


def optimum_contenders(python: str, checkpoint: Path, folder: Path, threads: int) -> dict[str, Contender]:
    """The files that optimum-onnx writes, on our ONNX Runtime. Prints its versions."""
    command = [python, str(HERE / "peer_optimum.py"), str(checkpoint), str(folder)]
    print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)
    return {name: Contender(session(folder / part / "model.onnx", threads), {}) for name, part in OPTIMUM.items()}


def session(graph: Path, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    opened = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(ids: Ids) -> NDArray[np.float32]:
        (logits,) = opened.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        return np.asarray(logits)[:, 0]

    return run


def our_contenders(checkpoint: Path, folder: Path, threads: int) -> dict[str, Contender]:
    """Bundles as rm-export writes them by default."""
    opened = open_checkpoint(checkpoint)
    calibration = Quantisation(options=CalibrationOptions(max_tokens=CALIBRATING, threads=threads))
    for precision in ("fp32", "int8"):
        export_checkpoint(opened, folder / precision, precision=precision, quantisation=calibration)
    return {
        name: Contender(scores_of(exported(folder / precision, engine, threads)), {})
        for name, (precision, engine) in OURS.items()
    }


def scores_of(run: Run) -> Run:
    return lambda ids: run(ids)["score"]


def agreements(contenders: Mapping[str, Contender], rows: Ids) -> dict[str, Agreement]:
    """The scores of the rows, each alone, against the reference's, of all that need not compile first."""
    asked = {name: of.run for name, of in contenders.items() if not of.first_call}
    scores = {name: np.concatenate([run(row[None]) for row in rows]) for name, run in asked.items()}
    return {name: compare_scores(scores[REFERENCE], values) for name, values in scores.items()}


def compare(model: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One model's table, printed; returns its figures."""
    write, kind = MODELS[model]
    checkpoint = write(folder / "checkpoint", arguments.layers)
    rng = np.random.default_rng(0)
    shapes = {f"{batch} x {length}": rng.integers(*IDS, size=(batch, length)) for batch, length in SHAPES}
    rows = rng.integers(*IDS, size=(ROWS, ROW_TOKENS))
    contenders = torch_contenders(kind, checkpoint, shapes)
    if arguments.optimum_python:
        contenders |= optimum_contenders(arguments.optimum_python, checkpoint, folder / "optimum", arguments.threads)
    contenders |= our_contenders(checkpoint, folder, arguments.threads)
    runs = {name: contender.run for name, contender in contenders.items()}
    agreed = agreements(contenders, rows)
    seconds = {shape: fastest(runs, ids, clock_for(arguments.threads)) for shape, ids in shapes.items()}
    print(f"\n| {model}, {arguments.layers} layers | {' | '.join(shapes)} | Spearman | flips |")
    print(f"|---|{'---|' * (len(shapes) + 2)}")
    for name in contenders:
        cells = [f"{1000 * of[name]:.0f} ({of[REFERENCE] / of[name]:.1f}x)" for of in seconds.values()]
        agreement = agreed.get(name)
        kept = [f"{agreement.spearman:.4f}", f"{100 * agreement.order.rate:.1f} %"] if agreement else ["", ""]
        print(f"| {name} | {' | '.join(cells + kept)} |", flush=True)
    if not arguments.optimum_python:
        for name in OPTIMUM:
            print(f"| {name} | not installed |{' |' * (len(shapes) + 1)}")
    compiling = {name: of.first_call for name, of in contenders.items() if of.first_call}
    for name, first_call in compiling.items():
        print(f"{name}, first call: {', '.join(f'{shape} {taken:.0f} s' for shape, taken in first_call.items())}")
    kept_order = {name: {"spearman": of.spearman, "flips": of.order.rate} for name, of in agreed.items()}
    return {"seconds": seconds, "first_call_seconds": compiling, "agreement": kept_order}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimum-python", help="python of an environment with optimum-onnx[onnxruntime]")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", choices=tuple(MODELS), action="append", help="only these (default: both)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch._inductor.config.freezing = True
    flags, versions = measured_flags(), {name: metadata.version(name) for name in PACKAGES}
    print(f"{arguments.threads} threads, {' '.join(flags)}; Python {platform.python_version()}, {versions}", flush=True)
    figures: dict[str, Any] = {"flags": flags, "versions": versions, "threads": arguments.threads}
    for model in arguments.model or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            figures[model] = compare(model, arguments, Path(folder))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
