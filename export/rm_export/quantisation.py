"""A quantised export: where the recipe comes from, the budget of flips it must hold, and its proof.

The judge is the file that will ship: its graph, its packed weights, run one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from rm_calibration.conversations import Example, default_conversations
from rm_calibration.formats import FORMATS
from rm_calibration.recipe import Recipe
from rm_export.bundle import Progress, write_graph
from rm_export.calibrate import CalibrationOptions, apply_recipe, calibrate
from rm_export.checkpoint import Checkpoint
from rm_export.families import Plan
from rm_export.judges import Judges, float_judges, layers_done
from rm_export.lowering import Target, lower
from rm_export.lowering.gemms import find_gemms
from rm_export.lowering.quantise_weights import QuantiseWeights
from rm_export.stage_runner import Outputs, StageRunner, run_stages
from rm_runtime.manifest import FileRecord

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
    """How a graph gets its integers. recipe: for int8 and fp8. judges: held-out; none if a recipe was replayed."""

    precision: str
    recipe: Recipe | None
    judges: Judges | None

    def graph(self, float_graph: ir.Model, target: Target) -> ir.Model:
        """The float graph with integers in it, in the target's dialect; the given model is changed.

        Embedding tables become int8 where the target can look them up and the recipe says so; for w4 too, whose weights
        lose far more.
        """
        if self.recipe is not None:
            model = apply_recipe(float_graph, self.recipe, FORMATS[self.precision])
            int8_tables = self.recipe.embeddings.decision == "int8"
        else:
            bits = WEIGHT_BITS[self.precision]
            model = QuantiseWeights(bits, blocks=bits < 8 or target.int8_blocks)(float_graph).model
            int8_tables = self.precision == "w4"
        return lower(model, self.precision, target, int8_tables and target.int8_tables)


@dataclass(frozen=True)
class Written:
    """A quantised graph on the disk. outputs: the judging rows' through that file, None without judges."""

    files: dict[str, FileRecord]
    quantised: Quantised
    outputs: Outputs | None


def quantise(
    build: Callable[[], ir.Model],
    plan: Plan,
    family: str,
    checkpoint: Checkpoint,
    precision: str,
    quantisation: Quantisation,
    work: Path,
    progress: Progress,
) -> Quantised:
    """Decide on "int8", "fp8", "w8" or "w4"; work: a folder for an interrupted calibration.

    Raises CalibrationError if a given recipe was made for another checkpoint.
    """
    examples = default_conversations() if quantisation.examples is None else quantisation.examples
    options = quantisation.options
    if precision in WEIGHT_BITS:
        return Quantised(
            precision, None, float_judges(build, plan, examples, options.max_tokens, options.threads, progress)
        )
    recipe = quantisation.recipe
    if recipe is not None:
        recipe.require_fit(family, checkpoint.config_sha256, [gemm.name for gemm in find_gemms(build().graph)])
        return Quantised(precision, recipe, None)
    return Quantised(precision, *calibrate(build, plan, family, checkpoint, examples, options, work, progress))


def write_within_budget(
    quantised: Quantised,
    build: Callable[[], ir.Model],
    folder: Path,
    name: str,
    target: Target,
    options: CalibrationOptions,
    progress: Progress,
) -> Written:
    """Write the graph; as long as too many clear preferences flip, return products to float and write it again.

    Worst ones first, by their effect on the scores, twice as many each time.
    """
    returned = 0
    while True:
        files = write_graph(quantised.graph(build(), target), folder, name, progress)
        if quantised.judges is None:
            return Written(files, quantised, None)
        runner = StageRunner(options.threads, folder)
        outputs = run_stages(
            ir.load(folder / name), quantised.judges.asked.rows, runner, layers_done(progress, "judging")
        )
        rate, recipe = quantised.judges.flip_rate(outputs), quantised.recipe
        if recipe is None or rate <= options.max_flip_rate or returned >= len(recipe.activations):
            return Written(files, quantised, outputs)
        reason = f"flips: {100 * rate:.2f} % of clear preferences with it in {quantised.precision}"
        reason += f", budget {100 * options.max_flip_rate:g} %"
        worst = _worst_first(recipe)[returned : 2 * returned + 1]
        returned += len(worst)
        progress.note(f"{reason}: {returned} of {len(recipe.activations)} inputs return to float")
        tables = replace(recipe.embeddings, decision="float", reason=reason)
        quantised = replace(quantised, recipe=replace(_in_float(recipe, worst, reason), embeddings=tables))
        for file in files:
            (folder / file).unlink()


def _worst_first(recipe: Recipe) -> list[str]:
    """Names of activations, the one whose products change the scores most first."""
    effect = {gemm.input: gemm.sensitivity or 0.0 for gemm in recipe.gemms.values()}
    return sorted(effect, key=lambda name: -effect[name])


def _in_float(recipe: Recipe, activations: Sequence[str], reason: str) -> Recipe:
    chosen = set(activations)
    gemms = {
        name: replace(gemm, decision="float", reason=reason) if gemm.input in chosen else gemm
        for name, gemm in recipe.gemms.items()
    }
    return replace(recipe, gemms=gemms)
