"""Do the engines decide alike? `python benchmarks/engine_agreement.py [--json F]`, about two minutes.

The trained demo and the tests' tiny checkpoints of every family, whose random weights make rounding count for more
than a trained model's do. Scores of the built-in conversations: each engine against ONNX Runtime on the same bundle,
and against the float32 bundle. A flip is a pair of rows ordered otherwise; clear pairs are over 0.1 deviations apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_calibration.comparison import compare_scores
from rm_calibration.conversations import default_conversations
from rm_export.checkpoint import open_checkpoint
from rm_export.demo import checkpoint_path
from rm_export.exporter import export_checkpoint
from rm_export.quantisation import Quantisation
from rm_export.questions import encode_questions, questions_of
from rm_runtime.batching import run_rows
from rm_runtime.bundle import Bundle, open_bundle
from rm_runtime.engines import open_engine
from rm_runtime.prompt_spec import ChatPrompt
from rm_runtime.prompts import Prompt

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import checkpoints

ROWS = 600
EXAMPLES = default_conversations()
QUANTISATION = Quantisation(examples=EXAMPLES[:24])
CHECKPOINTS = {
    "demo": lambda _: checkpoint_path(),
    "armorm": checkpoints.armorm,
    "grm": checkpoints.grm,
    "grm, gemma2": lambda folder: checkpoints.grm(folder, backbone="gemma2"),
    "pair-pm": checkpoints.pair_pm,
    "dpa-rm": checkpoints.dpa_rm,
    "pairrm": checkpoints.pairrm,
    "scalar, qwen2": lambda folder: checkpoints.scalar(folder, backbone="qwen2"),
}
ENGINES = {
    "fp32": ("openvino", "openvino-bf16"),
    "fp16": ("openvino", "openvino-bf16"),
    "int8": ("onnxruntime", "openvino", "openvino-bf16"),
}


def rows_of(bundle: Bundle) -> list[NDArray[np.int64]]:
    spec = bundle.manifest.prompt
    questions = questions_of(EXAMPLES, pairwise=not isinstance(spec, ChatPrompt))
    prompts = encode_questions(spec, bundle.tokenizer(), EXAMPLES, questions)
    return [np.asarray(prompt.ids, np.int64) for prompt in prompts if isinstance(prompt, Prompt)][:ROWS]


def scores(bundle: Bundle, engine: str, rows: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    """float64 [rows]."""
    outputs = run_rows(open_engine(bundle, engine), rows, bundle.manifest.pad_token_id)
    return outputs["score"].astype(np.float64)


def compared(expected: NDArray[np.float64], measured: NDArray[np.float64]) -> dict[str, float]:
    agreement = compare_scores(expected, measured)
    order = agreement.order
    return {
        "flips_%": 100 * order.flips / order.pairs,
        "clear_flips_%": 100 * order.clear_flips / order.clear_pairs,
        "max_error_std": agreement.max_error / agreement.std,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    print(
        "| checkpoint, bundle | engine | against | flips | clear flips | max error / std |\n|---|---|---|---|---|---|"
    )
    for name, make in CHECKPOINTS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            checkpoint = open_checkpoint(make(folder / "checkpoint"))
            bundles = {
                precision: open_bundle(
                    export_checkpoint(checkpoint, folder / precision, precision=precision, quantisation=QUANTISATION)
                )
                for precision in ENGINES
            }
            rows = rows_of(bundles["fp32"])
            single = scores(bundles["fp32"], "onnxruntime", rows)
            for precision, engines in ENGINES.items():
                same = scores(bundles[precision], "onnxruntime", rows)
                for engine in engines:
                    measured = scores(bundles[precision], engine, rows)
                    references = {"ORT, same bundle": same, "float32": single}
                    for against, reference in references.items():
                        if engine == "onnxruntime" and reference is same:
                            continue
                        row = compared(reference, measured)
                        figures[f"{name}, {precision}, {engine}, against {against}"] = row
                        cells = f"{row['flips_%']:.3f} % | {row['clear_flips_%']:.3f} % | {row['max_error_std']:.1e}"
                        print(f"| {name}, {precision} | {engine} | {against} | {cells} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
