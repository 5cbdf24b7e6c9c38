"""Our INT8 against other quantisers of ONNX graphs: `python benchmarks/int8_peers.py quality|memory [options]`.

quality: the demo and its hardened copy (int8_quality.py), the same float graph, the same calibration conversations fed
row by row, the same held-out judges, every result scored by our runtime. memory: a Llama-3.2-1B shape with random
weights (--layers for fewer), the same eight short conversations; every method in a process of its own, with its peak
resident set as the kernel tells it. Peers get a float32 bundle's model.onnx; the time to write that is not counted.

onnxruntime's quantiser (peer_onnxruntime.py) needs sympy beside onnxruntime and onnx. nvidia-modelopt
(peer_modelopt.py) pins other versions of both, so --modelopt-python is the python of an environment of its own:

    python -m venv VENV
    VENV/bin/pip install "nvidia-modelopt[onnx]" "torch==2.13.0" --extra-index-url https://download.pytorch.org/whl/cpu

Without it modelopt is left out. A memory run with 16 layers needs about 35 GB of disk under --folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import full_size
from asked import chats, judging_examples, scores_of, training_examples
from quality_models import CALIBRATING, demo_and_hardened
from rm_calibration.comparison import compare_scores
from rm_calibration.conversations import Example
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_export.quantisation import Quantisation
from rm_runtime.bundle import open_bundle, sha256_of
from rm_runtime.prompt_spec import ChatPrompt
from rm_runtime.prompts import ChatPrompter, Prompt
from watched import Watched, run_watched

HERE = Path(__file__).parent
OURS = "ours, default"
PEERS: dict[str, tuple[str, str, str]] = {
    "onnxruntime, entropy": ("peer_onnxruntime.py", "entropy", "default"),
    "onnxruntime, percentile": ("peer_onnxruntime.py", "percentile", "default"),
    "onnxruntime, entropy, MatMul per channel": ("peer_onnxruntime.py", "entropy", "matmul"),
    "onnxruntime, percentile, MatMul per channel": ("peer_onnxruntime.py", "percentile", "matmul"),
    "modelopt, entropy": ("peer_modelopt.py", "entropy", "whole"),
    "modelopt, max": ("peer_modelopt.py", "max", "whole"),
    "modelopt, max, per node": ("peer_modelopt.py", "max", "per-node"),
}
MEMORY_CONVERSATIONS = 8
MEMORY_TOKENS = range(64, 129)

Chat = list[dict[str, str]]


@dataclass(frozen=True)
class Setting:
    """What every method is given: a checkpoint, its float32 bundle, the chats, and the same chats as rows of ids."""

    checkpoint: Path
    float_bundle: Path
    chats: Path
    rows: Path


@dataclass(frozen=True)
class Limits:
    """When a method is ended: resident set in GiB, seconds."""

    gib: float
    seconds: float


def prepare(checkpoint: Path, chats: Sequence[Chat], folder: Path, tokens: range | None = None) -> Setting:
    """The float bundle and the calibration files of a checkpoint.

    chats: those to calibrate on; with `tokens`, the first MEMORY_CONVERSATIONS of them that have so many.
    """
    folder.mkdir()
    setting = Setting(checkpoint, folder / "float", folder / "chats.json", folder / "rows.npz")
    export_checkpoint(open_checkpoint(checkpoint), setting.float_bundle)
    kept = list(zip(chats, rows_of(setting.float_bundle, chats), strict=True))
    if tokens is not None:
        kept = [(chat, row) for chat, row in kept if len(row) in tokens][:MEMORY_CONVERSATIONS]
    lengths = [len(row) for _, row in kept]
    print(
        f"{len(kept)} conversations calibrate, {sum(lengths)} tokens, {min(lengths)} to {max(lengths)} each", flush=True
    )
    setting.chats.write_text(json.dumps([chat for chat, _ in kept]))
    np.savez(setting.rows, *(row for _, row in kept))
    return setting


def rows_of(bundle: Path, chats: Sequence[Chat]) -> list[NDArray[np.int64]]:
    """The bundle's own ids of each chat; every chat must fit."""
    opened = open_bundle(bundle)
    spec = opened.manifest.prompt
    assert isinstance(spec, ChatPrompt)
    prompts = ChatPrompter(spec, opened.tokenizer()).encode(chats)
    return [np.asarray(prompt.ids, np.int64) for prompt in prompts if isinstance(prompt, Prompt)]


def quantise(name: str, setting: Setting, folder: Path, limits: Limits, modelopt: str | None) -> tuple[Path, Watched]:
    """Run one method; returns the bundle it made (or would have) and what it took."""
    folder.mkdir()
    output = folder / "bundle"
    if name == OURS:
        ours = [sys.executable, __file__, "--ours", *map(str, (setting.checkpoint, setting.chats, output))]
        return output, run_watched(ours, folder, limits.gib, limits.seconds)
    script, *choices = PEERS[name]
    python = modelopt if script == "peer_modelopt.py" else sys.executable
    given = folder / "given"  # a copy: nvidia-modelopt writes shapes into the file it is given
    shutil.copytree(setting.float_bundle, given)
    graph = folder / "made" / "model.onnx"
    graph.parent.mkdir()
    command = [str(python), str(HERE / script), *map(str, (given / "model.onnx", setting.rows, graph)), *choices]
    took = run_watched(command, folder, limits.gib, limits.seconds)
    shutil.rmtree(given)
    if took.failure is None:
        swap_graph(setting.float_bundle, graph, output)
    return output, took


def swap_graph(bundle: Path, graph: Path, output: Path) -> None:
    """A copy of the bundle around another graph, with whatever lies beside it as its weights, hashed anew."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    for name in ("model.onnx", "model.onnx.data", "model.prefix.onnx"):
        manifest["files"].pop(name, None)
    manifest["graphs"].pop("prefix", None)  # a peer quantises the plain graph only
    output.mkdir()
    shutil.copy(bundle / "tokenizer.json", output)
    for path in graph.parent.iterdir():
        manifest["files"][path.name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
        shutil.move(path, output)
    (output / "bundle.json").write_text(json.dumps(manifest))


def quality(names: Sequence[str], folder: Path, limits: Limits, modelopt: str | None) -> dict[str, Any]:
    """Flips and errors of every method on both demos."""
    judging, calibrating = chats(judging_examples(4)), chats(training_examples(CALIBRATING, 4))
    figures = {}
    for model, checkpoint in demo_and_hardened(folder).items():
        setting = prepare(checkpoint, calibrating, folder / f"{model}-setting")
        expected = scores_of(setting.float_bundle, judging)
        for place, name in enumerate(names):
            bundle, took = quantise(name, setting, folder / f"{model}-{place}", limits, modelopt)
            row: dict[str, Any] = asdict(took)
            if took.failure is None:
                agreement = compare_scores(expected, scores_of(bundle, judging))
                row |= {
                    "clear_flips_%": 100 * agreement.order.clear_flips / agreement.order.clear_pairs,
                    "spearman": agreement.spearman,
                    "max_error_std": agreement.max_error / agreement.std,
                    "mean_error_std": agreement.mean_error / agreement.std,
                }
            figures[f"{model}, {name}"] = row
            print(f"| {model} | {name} | {quality_cells(row)} |", flush=True)
    return figures


def quality_cells(row: Mapping[str, Any]) -> str:
    """One line of the table."""
    if row["failure"] is not None:
        return f"{row['failure']} | | |"
    errors = f"{row['max_error_std']:.3f} | {row['mean_error_std']:.4f}"
    return f"{row['clear_flips_%']:.2f} % | {row['spearman']:.5f} | {errors}"


def memory(names: Sequence[str], folder: Path, limits: Limits, modelopt: str | None, layers: int) -> dict[str, Any]:
    """Peak memory and time of every method on the 1B shape."""
    checkpoint = full_size.llama_1b(folder / "checkpoint", layers)
    one_answer_each = chats(training_examples(200, 1))
    setting = prepare(checkpoint, one_answer_each, folder / "setting", MEMORY_TOKENS)
    figures = {}
    for place, name in enumerate(names):
        _, took = quantise(name, setting, folder / f"{place}", limits, modelopt)
        shutil.rmtree(folder / f"{place}")
        figures[f"{layers} layers, {name}"] = asdict(took)
        outcome = took.failure or "done"
        print(f"| {layers} | {name} | {took.peak_gib:.2f} GiB | {took.seconds:.0f} s | {outcome} |", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("quality", "memory"), nargs="?")
    parser.add_argument("--modelopt-python", help="python of an environment with nvidia-modelopt[onnx]")
    parser.add_argument("--method", choices=(OURS, *PEERS), action="append", help="only these (default: all)")
    parser.add_argument("--layers", type=int, default=16, help="of the 1B shape")
    parser.add_argument("--limit-gib", type=float, default=18.0, help="resident set at which a method is killed")
    parser.add_argument("--limit-seconds", type=float, default=3600.0)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--ours", nargs=3, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        export_ours(*arguments.ours)
        return
    if arguments.part is None:
        parser.error("say which part: quality or memory")
    modelopt = arguments.modelopt_python
    names = [
        name
        for name in arguments.method or (OURS, *PEERS)
        if modelopt or not (name in PEERS and PEERS[name][0] == "peer_modelopt.py")
    ]
    limits = Limits(arguments.limit_gib, arguments.limit_seconds)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.part == "quality":
            figures = quality(names, Path(folder), limits, modelopt)
        else:
            figures = memory(names, Path(folder), limits, modelopt, arguments.layers)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def export_ours(checkpoint: Path, chats: Path, output: Path) -> None:
    """Our own side, in this process."""
    examples = [Example(tuple(chat)) for chat in json.loads(chats.read_text())]
    export_checkpoint(
        open_checkpoint(checkpoint), output, precision="int8", quantisation=Quantisation(examples=examples)
    )


if __name__ == "__main__":
    main()
