"""A quantised export around its graph: where the recipe comes from, and the proof that goes into the bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from rm_calibration.conversations import Example, default_conversations
from rm_calibration.recipe import Recipe
from rm_export.bundle import Progress
from rm_export.calibrate import CalibrationOptions, Judges, apply_recipe, calibrate, float_judges
from rm_export.checkpoint import Checkpoint
from rm_export.families import Plan
from rm_export.lowering.gemms import find_gemms
from rm_export.lowering.quantise_weights import QuantiseWeights
from rm_export.measure import measure
from rm_export.proof import package_versions, parity_files, publish
from rm_runtime.batching import run_rows
from rm_runtime.bundle import open_bundle
from rm_runtime.engines import open_engine

RECIPE_NAME = "recipe.yaml"
WEIGHT_BITS = {"w8": 8, "w4": 4}


@dataclass(frozen=True)
class Quantisation:
    """What a user may choose. recipe: replay this one; else calibrate on `examples` (None: the built-in set)."""

    recipe: Recipe | None = None
    examples: Sequence[Example] | None = None
    options: CalibrationOptions = field(default_factory=CalibrationOptions)


@dataclass(frozen=True)
class Quantised:
    """How a graph gets its integers. recipe: for int8. judges: held-out; none if a recipe was replayed."""

    precision: str
    recipe: Recipe | None
    judges: Judges | None

    def graph(self, float_graph: ir.Model) -> ir.Model:
        """The float graph with integers in it; the given model is changed."""
        if self.recipe is not None:
            return apply_recipe(float_graph, self.recipe)
        return QuantiseWeights(WEIGHT_BITS[self.precision])(float_graph).model


def quantise(
    build: Callable[[], ir.Model],
    plan: Plan,
    family: str,
    checkpoint: Checkpoint,
    precision: str,
    quantisation: Quantisation,
    progress: Progress,
) -> Quantised:
    """Decide on "int8", "w8" or "w4". Raises CalibrationError if a given recipe was made for another checkpoint."""
    examples = default_conversations() if quantisation.examples is None else quantisation.examples
    threads = quantisation.options.threads
    if precision in WEIGHT_BITS:
        return Quantised(precision, None, float_judges(build, plan, examples, threads))
    recipe, judges = quantisation.recipe, None
    if recipe is not None:
        recipe.require_fit(family, checkpoint.config_sha256, [gemm.name for gemm in find_gemms(build().graph)])
    else:

        def on_layer(done: int, total: int) -> None:
            if done == 1:
                progress.begin("calibrating", total, "layers")
            progress.advance(1)

        recipe, judges = calibrate(build, plan, family, checkpoint, examples, quantisation.options, on_layer)
    return Quantised(precision, recipe, judges)


def prove(output: Path, judges: Judges) -> None:
    """Run the finished bundle on the held-out rows, compare with the float graph, write the parity files into it."""
    bundle = open_bundle(output)
    engine = open_engine(bundle)
    measured = run_rows(engine, judges.rows, bundle.manifest.pad_token_id)
    parity = measure(
        bundle.manifest,
        list(zip(judges.questions, judges.prompts, strict=True)),
        judges.outputs,
        measured,
        engine=engine.name,
        versions=package_versions(),
        examples=len({question.line for question in judges.questions}),
        not_rendered={},
        reference="the float32 graph of the same checkpoint, on conversations that calibration never saw",
    )
    publish(bundle, parity, parity_files(parity, judges.examples))
