"""What each target's dialect of a quantised graph does to preferences: `python benchmarks/dialects.py`.

The demo and its hardened copy, judged as in int8_quality.py. Every graph runs on ONNX Runtime's CPU, the float16 ones
too: what a GPU rounds otherwise is not in these figures. Also: int8 embedding tables alone, and weight-only products
whose activations ONNX Runtime rounds to int8 in blocks (accuracy_level 4; it chooses that by itself where it finds
DequantizeLinear -> MatMul, which is switched off here) or may treat as it likes (0) instead of keeping them float (1).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from tokenizers import Tokenizer

from asked import chats, judging_examples, training_examples
from quality_models import CALIBRATING, demo_and_hardened
from rm_calibration.comparison import compare_scores
from rm_calibration.formats import FLOAT8
from rm_export.build import build_model
from rm_export.bundle import Silent
from rm_export.calibrate import CalibrationOptions, apply_recipe, calibrate
from rm_export.checkpoint import Checkpoint, open_checkpoint
from rm_export.families import Plan, family
from rm_export.lowering import TARGETS, lower
from rm_export.lowering.cleanup import Cleanup
from rm_export.lowering.matmul_nbits import MatMulNBits
from rm_export.lowering.quantise_weights import QuantiseWeights
from rm_export.options import Options
from rm_runtime.batching import run_rows
from rm_runtime.prompts import ChatPrompter

FAMILY = "armorm"


class Session:
    """A graph in ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, model: ir.Model, folder: Path) -> None:
        import onnxruntime

        path = folder / "model.onnx"
        ir.save(model, path, external_data="model.onnx.data")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(
            "session.qdq_matmulnbits_accuracy_level", "1"
        )  # as TensorRT: float activations
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, arrays), strict=True))


def scores(model: ir.Model, plan: Plan, rows: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    """The graph's scores of rows of ids."""
    with tempfile.TemporaryDirectory() as folder:
        return run_rows(Session(model, Path(folder)), rows, plan.pad_token_id)["score"].astype(np.float64)


def quantised(build: Callable[[], ir.Model], recipe: Any) -> Iterator[tuple[str, ir.Model]]:
    """What is compared, by name."""
    yield "float16 (cpu)", lower(build(), "fp16", TARGETS["cpu"])
    yield "int8 embedding tables alone", lower(build(), "fp32", TARGETS["cpu"], int8_tables=True)
    for target in TARGETS.values():
        yield f"int8, {target.name}", lower(apply_recipe(build(), recipe), "int8", target)
    yield "fp8, tensorrt", lower(apply_recipe(build(), recipe, FLOAT8), "fp8", TARGETS["tensorrt"])
    yield "int8 and int8 tables, cpu", lower(apply_recipe(build(), recipe), "int8", TARGETS["cpu"], int8_tables=True)
    for bits in (8, 4):
        for target in TARGETS.values():
            yield f"w{bits}, {target.name}", lower(QuantiseWeights(bits)(build()).model, f"w{bits}", target)
        for level in (0, 4):
            passes = ir.passes.Sequential(QuantiseWeights(bits), MatMulNBits(level), Cleanup())
            yield f"w{bits}, accuracy_level {level}", passes(build()).model


def main() -> None:
    judging, examples = chats(judging_examples(4)), training_examples(CALIBRATING, 4)
    with tempfile.TemporaryDirectory() as folder:
        for model, path in demo_and_hardened(Path(folder)).items():
            checkpoint = open_checkpoint(path)
            plan = family(FAMILY).plan(checkpoint, Options())

            def build(checkpoint: Checkpoint = checkpoint) -> ir.Model:
                return build_model(family(FAMILY).plan(checkpoint, Options()), "demo")

            recipe, _ = calibrate(
                build, plan, FAMILY, checkpoint, examples, CalibrationOptions(), Path(folder) / "work", Silent()
            )
            prompts = ChatPrompter(plan.prompt, Tokenizer.from_str(plan.tokenizer_json)).encode(judging)
            rows = [np.asarray(prompt.ids, np.int64) for prompt in prompts]
            expected = scores(lower(build(), "fp32", TARGETS["cpu"]), plan, rows)
            for name, graph in quantised(build, recipe):
                agreement = compare_scores(expected, scores(graph, plan, rows))
                print(
                    f"{model:9} {name:28} "
                    f"clear flips {100 * agreement.order.clear_flips / agreement.order.clear_pairs:6.2f} %  "
                    f"Spearman {agreement.spearman:.5f}  error/std max {agreement.max_error / agreement.std:.4f} "
                    f"mean {agreement.mean_error / agreement.std:.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
