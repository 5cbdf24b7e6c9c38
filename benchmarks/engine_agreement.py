"""Do the engines decide alike? `python benchmarks/engine_agreement.py [--json F]`, about two minutes.

The trained demo and the tests' tiny checkpoints of every family, whose random weights make rounding count for more
than a trained model's do. Scores of the built-in conversations: each engine against ONNX Runtime on the same bundle,
and against the float32 bundle. A flip is a pair of rows ordered otherwise; clear pairs are over 0.1 deviations apart.

"ORT, nudged" is ONNX Runtime itself with embeddings changed by up to half a millionth, which moves float32 scores
about as much as another engine does: it tells what int8 rounding alone makes of such a difference.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rm_calibration.comparison import compare_scores
from rm_calibration.conversations import default_conversations
from rm_export.checkpoint import open_checkpoint
from rm_export.demo import checkpoint_path
from rm_export.exporter import export_checkpoint
from rm_export.quantisation import Quantisation
from rm_export.questions import encode_questions, questions_of
from rm_export.stages import lookups
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
NUDGED = "ORT, nudged"
NUDGE = 5e-7
ENGINES = {
    "fp32": (NUDGED, "openvino", "openvino-bf16"),
    "fp16": ("openvino", "openvino-bf16"),
    "int8": ("onnxruntime", NUDGED, "openvino", "openvino-bf16"),
}


def rows_of(bundle: Bundle) -> list[NDArray[np.int64]]:
    spec = bundle.manifest.prompt
    questions = questions_of(EXAMPLES, pairwise=not isinstance(spec, ChatPrompt))
    prompts = encode_questions(spec, bundle.tokenizer(), EXAMPLES, questions)
    return [np.asarray(prompt.ids, np.int64) for prompt in prompts if isinstance(prompt, Prompt)][:ROWS]


def scores(bundle: Bundle, engine: str, rows: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    """float64 [rows]."""
    opened = open_engine(nudged(bundle), "onnxruntime") if engine == NUDGED else open_engine(bundle, engine)
    return run_rows(opened, rows, bundle.manifest.pad_token_id)["score"].astype(np.float64)


def nudged(bundle: Bundle) -> Bundle:
    """A copy beside the bundle whose looked-up embeddings, or the scales of int8 ones, are changed by up to NUDGE."""
    folder = shutil.copytree(bundle.path, bundle.path.with_name(f"{bundle.path.name}-nudged"))
    path = folder / bundle.graph_path().name
    model = ir.load(path)
    size = bundle.manifest.architecture["hidden_size"]
    factors = 1 + NUDGE * np.random.default_rng(0).uniform(-1, 1, size)
    nudge = ir.Value(name="nudge", const_value=ir.Tensor(factors.astype(np.float32), name="nudge"))
    model.graph.register_initializer(nudge)
    for lookup in lookups(model.graph):
        found, table = lookup.outputs[0], lookup.inputs[0]
        if table is not None and table.dtype == ir.DataType.FLOAT:
            product = ir.node("Mul", [found, nudge], name=f"{lookup.name}/nudged")
            found.replace_all_uses_with(product.outputs[0])
            product.replace_input_with(0, found)
            model.graph.insert_after(lookup, product)
    ir.save(model, path)
    return replace(bundle, path=folder)


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
    parser.add_argument("--checkpoints", nargs="*", choices=CHECKPOINTS, default=list(CHECKPOINTS))
    parser.add_argument("--precisions", nargs="*", choices=ENGINES, default=list(ENGINES))
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    print(
        "| checkpoint, bundle | engine | against | flips | clear flips | max error / std |\n|---|---|---|---|---|---|"
    )
    for name in arguments.checkpoints:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            checkpoint = open_checkpoint(CHECKPOINTS[name](folder / "checkpoint"))
            bundles = {
                precision: open_bundle(
                    export_checkpoint(checkpoint, folder / precision, precision=precision, quantisation=QUANTISATION)
                )
                for precision in {"fp32", *arguments.precisions}
            }
            rows = rows_of(bundles["fp32"])
            single = scores(bundles["fp32"], "onnxruntime", rows)
            for precision in arguments.precisions:
                same = scores(bundles[precision], "onnxruntime", rows)
                for engine in ENGINES[precision]:
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
