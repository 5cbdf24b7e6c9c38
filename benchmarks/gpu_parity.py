"""Whether bundles on a GPU decide as the float32 reference: a part of benchmarks/gpu.py.

Every family's tiny checkpoint of the tests and the demo, exported for the device and compared with Hugging Face's
float32 on the CPU, as `rm-export verify` does it; and which operators ONNX Runtime did not place on the GPU.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from rm_calibration.conversations import Example
from rm_export.checkpoint import open_checkpoint
from rm_export.demo import checkpoint_path
from rm_export.exporter import export_checkpoint
from rm_export.parity import Parity
from rm_export.verify import verify_bundle

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # where the tiny checkpoints are
import checkpoints

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "armorm": ("armorm", {}),
    "armorm, gemma2": ("armorm", {"backbone": "gemma2"}),
    "grm": ("grm", {}),
    "pair-pm": ("pair_pm", {}),
    "dpa-rm": ("dpa_rm", {}),
    "scalar, qwen2": ("scalar", {"backbone": "qwen2"}),
    "scalar, qwen3": ("scalar", {"backbone": "qwen3"}),
    "scalar, gemma": ("scalar", {"backbone": "gemma"}),
    "pairrm": ("pairrm", {}),
}
"""Name -> function of tests/checkpoints, its options. Each attention of each family once."""
PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}


def parity(
    device: str, precisions: Sequence[str], examples: Sequence[Example] | None, cases: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The table's rows, one a checkpoint and precision. examples: None takes the built-in conversations."""
    for name in [*cases, "demo"]:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = open_checkpoint(checkpoint_path() if name == "demo" else _made(name, Path(folder) / "made"))
            for precision in precisions:
                bundle = export_checkpoint(checkpoint, Path(folder) / precision, precision=precision, target=device)
                found = verify_bundle(bundle, checkpoint, examples, engine="onnxruntime", device=device)
                yield {"checkpoint": name, "precision": precision, **_figures(found), **placement(bundle, device)}


def _made(name: str, folder: Path) -> Path:
    function, options = CASES[name]
    made: Path = getattr(checkpoints, function)(folder, **options)
    return made


def _figures(found: Parity) -> dict[str, Any]:
    return {
        "rows": found.agreement.n,
        "pairs": found.order.pairs,
        "flips": found.order.flips,
        "clear_pairs": found.order.clear_pairs,
        "clear_flips": found.order.clear_flips,
        "max_error_std": found.agreement.relative_max_error,
        "refused_by_one": found.refused_by_one,
    }


def placement(bundle: Path, device: str) -> dict[str, Any]:
    """How many kernels of one run were the device's, and which operators were not (name -> number).

    Those that only handle shapes are placed on the CPU on purpose; what counts is whether matrices go there.
    """
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(bundle / "profile")
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), options, providers=[PROVIDERS[device]])
    ids = np.arange(5, 69)[None]
    session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
    elsewhere = Counter(kernel["op_name"] for kernel in kernels if kernel["provider"] != PROVIDERS[device])
    return {"kernels": len(kernels), "elsewhere": dict(elsewhere)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| checkpoint | precision | flips | clear flips | max error / std | kernels elsewhere |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        elsewhere = ", ".join(f"{count} {op}" for op, count in row["elsewhere"].items()) or "none"
        lines.append(
            f"| {row['checkpoint']} | {row['precision']} | {row['flips']} of {row['pairs']} | "
            f"{row['clear_flips']} of {row['clear_pairs']} | {row['max_error_std']:.1e} | {elsewhere} |"
        )
    return "\n".join(lines)
