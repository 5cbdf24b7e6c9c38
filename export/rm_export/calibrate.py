"""checkpoint + conversations -> recipe: what is quantised, with which numbers, decided by the effect on preferences.

The float model runs one layer at a time (stages.py). For every quantised activation the smoothing that loses least is
searched, then its int8 range is observed. Held-out conversations judge: as long as too many of their clear preferences
flip, the products with the largest effect on the scores return to float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rm_calibration.comparison import Flips, compare_margins, compare_scores
from rm_calibration.conversations import Example
from rm_calibration.errors import CalibrationError
from rm_calibration.holdout import conversations_digest, split_examples
from rm_calibration.observers import ChannelMax, observer_named
from rm_calibration.recipe import Activation, Calibration, Clip, Gemm, Recipe, Source
from rm_calibration.smoothing import ALPHAS, RowSample, Smoothing, search_smoothing, smoothing_factors
from rm_calibration.symmetric import scale_of
from rm_calibration.weights import clip_ratios
from rm_export.checkpoint import Checkpoint
from rm_export.families import Plan
from rm_export.lowering.gemms import Gemm as GraphGemm
from rm_export.lowering.gemms import find_fold, gemm_groups
from rm_export.lowering.quantise import Quantise
from rm_export.lowering.smooth import Smooth
from rm_export.questions import Question, encode_questions, questions_of
from rm_export.stages import Array, LoadedStage, StageRunner, advance, collect, run_stages, split_stages, start
from rm_runtime.prompt_spec import ChatPrompt
from rm_runtime.prompts import Prompt

Rows = list[NDArray[np.int64]]
Outputs = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class CalibrationOptions:
    """How a recipe is made.

    observer: rule that clips activations ("mse", "minmax", "percentile", "entropy"). alphas: smoothing strengths that
    are tried; (0.0,) switches smoothing off. max_flip_rate: share of clear preferences (margin beyond 0.1 standard
    deviations) on held-out conversations that may be decided otherwise than in float. threads: for the engine.
    """

    observer: str = "mse"
    alphas: Sequence[float] = ALPHAS
    max_flip_rate: float = 0.01
    threads: int | None = None


@dataclass(frozen=True)
class Judges:
    """Held-out examples, the questions asked of them, their prompts, and what the float model makes of those."""

    examples: tuple[Example, ...]
    questions: tuple[Question, ...]
    prompts: tuple[Prompt, ...]
    outputs: Outputs
    pairwise: bool

    @property
    def rows(self) -> Rows:
        """The rows of ids."""
        return [np.asarray(prompt.ids, np.int64) for prompt in self.prompts]

    def flips(self, outputs: Outputs) -> Flips:
        """How the scores of another precision decide: all pairs of rows; for pairwise families the preferences."""
        scorable = np.isfinite(self.outputs["score"]) & np.isfinite(outputs["score"])
        expected, actual = self.outputs["score"][scorable], outputs["score"][scorable]
        if not self.pairwise:
            return compare_scores(expected, actual).order
        questions = [question for question, kept in zip(self.questions, scorable, strict=True) if kept]
        place = {(question.line, *question.responses): row for row, question in enumerate(questions)}
        margins = [
            (row, place[line, second, first])
            for (line, first, second), row in place.items()
            if first < second and (line, second, first) in place
        ]
        return compare_margins(*([side[i] - side[j] for i, j in margins] for side in (expected, actual)))


@dataclass
class Observed:
    """What the float pass found out, by activation name."""

    activations: dict[str, Activation] = field(default_factory=dict)
    clips: dict[str, Clip] = field(default_factory=dict)


def calibrate(
    build: Callable[[], ir.Model],
    plan: Plan,
    family: str,
    checkpoint: Checkpoint,
    examples: Sequence[Example],
    options: CalibrationOptions,
    on_layer: Callable[[int, int], None] | None = None,
) -> tuple[Recipe, Judges]:
    """Make the recipe; also return the held-out judges with their float outputs, for the proof in the bundle.

    build: makes a fresh float32 graph of the plan. on_layer: told (stages done, stages).
    Raises CalibrationError if the conversations are too few, or an activation is not finite.
    """
    split = split_examples(examples)
    pairwise = not isinstance(plan.prompt, ChatPrompt)
    _, calibrating = _prompts(plan, split.calibration, pairwise)
    questions, judging = _prompts(plan, split.held_out, pairwise)
    runner = StageRunner(options.threads)
    rows = [np.asarray(prompt.ids, np.int64) for prompt in calibrating]
    observed, outputs = _float_pass(
        build(), rows, [np.asarray(p.ids, np.int64) for p in judging], runner, options, on_layer
    )
    judges = Judges(split.held_out, tuple(questions), tuple(judging), outputs, pairwise)
    gemms = {
        gemm.name: Gemm(name, "int8", "within the flip budget", observed.clips[gemm.name])
        for name, group in gemm_groups(build().graph).items()
        for gemm in group
    }
    recipe = Recipe(
        family=family,
        source=Source(checkpoint.id, checkpoint.config_sha256),
        calibration=Calibration(
            digest=conversations_digest(examples),
            conversations=len(split.calibration),
            tokens=sum(len(row) for row in rows),
            observer=options.observer,
        ),
        activations=observed.activations,
        gemms=gemms,
        versions={name: metadata.version(name) for name in ("rm-export", "onnxruntime", "numpy")},
    )
    return _within_budget(recipe, build, judges, runner, options), judges


def float_judges(build: Callable[[], ir.Model], plan: Plan, examples: Sequence[Example], threads: int | None) -> Judges:
    """Held-out judges for a precision that needs no calibration; errors as `calibrate`."""
    held_out = split_examples(examples).held_out
    pairwise = not isinstance(plan.prompt, ChatPrompt)
    questions, prompts = _prompts(plan, held_out, pairwise)
    rows = [np.asarray(prompt.ids, np.int64) for prompt in prompts]
    outputs = run_stages(build(), rows, StageRunner(threads))
    return Judges(held_out, tuple(questions), tuple(prompts), outputs, pairwise)


def apply_recipe(model: ir.Model, recipe: Recipe) -> ir.Model:
    """The float32 graph smoothed and quantised as the recipe says; the given model is changed."""
    channels = {name: _channels(gemms[0].weight) for name, gemms in gemm_groups(model.graph).items()}
    int8 = frozenset(name for name, gemm in recipe.gemms.items() if gemm.decision == "int8")
    read = {gemm.input for name, gemm in recipe.gemms.items() if name in int8}
    exponents = {name: recipe.activations[name].exponents(channels[name]) for name in read}
    scales = {name: recipe.activations[name].scale for name in read}
    return ir.passes.Sequential(Smooth(exponents), Quantise(scales, int8))(model).model


def _prompts(plan: Plan, examples: Sequence[Example], pairwise: bool) -> tuple[list[Question], list[Prompt]]:
    from tokenizers import Tokenizer

    questions = questions_of(examples, pairwise)
    encoded = encode_questions(plan.prompt, Tokenizer.from_str(plan.tokenizer_json), examples, questions)
    kept = [(q, prompt) for q, prompt in zip(questions, encoded, strict=True) if isinstance(prompt, Prompt)]
    if len(kept) < 2:
        refused = next((str(prompt) for prompt in encoded if not isinstance(prompt, Prompt)), "none was given")
        raise CalibrationError(f"calibration needs at least two conversations on either side of its split: {refused}")
    return [question for question, _ in kept], [prompt for _, prompt in kept]


def _float_pass(
    model: ir.Model,
    calibrating: Rows,
    judging: Rows,
    runner: StageRunner,
    options: CalibrationOptions,
    on_layer: Callable[[int, int], None] | None,
) -> tuple[Observed, Outputs]:
    groups = gemm_groups(model.graph)
    names = {gemms[0].activation: name for name, gemms in groups.items()}
    states = [start(model, row) for row in (*calibrating, *judging)]
    observed = Observed()
    stages = split_stages(model, names)
    for done, stage in enumerate(stages, start=1):
        loaded = runner.open(stage)
        own = set(stage.nodes)
        inside = {value: name for value, name in names.items() if groups[name][0].node in own}
        smoothed = _choose_smoothing(loaded, inside, groups, states[: len(calibrating)], options)
        observed.activations |= _observe(loaded, inside, smoothed, states[: len(calibrating)], options)
        for name, smoothing in smoothed.items():
            factors = smoothing_factors(smoothing.exponents)
            for gemm in groups[name]:
                ratios = clip_ratios(loaded.weight(gemm.weight) * factors[:, None], tensor=gemm.name)
                observed.clips[gemm.name] = Clip("mse", float(ratios.mean()))
        for place, state in enumerate(states):
            states[place] = advance(state, loaded.run(state), stage)
        if on_layer is not None:
            on_layer(done, len(stages))
    return observed, collect(model, states[len(calibrating) :])


def _choose_smoothing(
    loaded: LoadedStage,
    inside: Mapping[ir.Value, str],
    groups: Mapping[str, list[GraphGemm]],
    states: Sequence[Mapping[ir.Value, Array]],
    options: CalibrationOptions,
) -> dict[str, Smoothing]:
    """First look at the stage: channel maxima and a sample of rows -> how each activation is smoothed."""
    maxima = {value: ChannelMax(name) for value, name in inside.items()}
    samples = {value: RowSample() for value in inside}
    for state in states if inside else ():
        results = {**state, **loaded.run(state)}
        for value in inside:
            maxima[value].observe(results[value])
            samples[value].observe(results[value])
    chosen = {}
    for value, name in inside.items():
        fold = find_fold(value)
        weights = [loaded.weight(gemm.weight) for gemm in groups[name]]
        chosen[name] = search_smoothing(
            samples[value].rows(),
            maxima[value].maxima(),
            weights,
            options.observer,
            None if fold is None else fold.tied,
            options.alphas,
        )
    return chosen


def _observe(
    loaded: LoadedStage,
    inside: Mapping[ir.Value, str],
    smoothed: Mapping[str, Smoothing],
    states: Sequence[Mapping[ir.Value, Array]],
    options: CalibrationOptions,
) -> dict[str, Activation]:
    """Second look: the range of each activation as it will be, smoothed."""
    observers = {value: observer_named(options.observer, name) for value, name in inside.items()}
    inverse = {value: 1 / smoothing_factors(smoothed[name].exponents) for value, name in inside.items()}
    for state in states if inside else ():
        results = {**state, **loaded.run(state)}
        for value, observer in observers.items():
            observer.observe(results[value] * inverse[value])
    activations = {}
    for value, name in inside.items():
        amax, smoothing = observers[value].amax(), smoothed[name]
        exponents = tuple(int(e) for e in smoothing.exponents) if smoothing.exponents.any() else None
        activations[name] = Activation(amax, scale_of(amax), options.observer, smoothing.alpha, exponents)
    return activations


def _within_budget(
    recipe: Recipe, build: Callable[[], ir.Model], judges: Judges, runner: StageRunner, options: CalibrationOptions
) -> Recipe:
    """Return products to float, worst first, twice as many each time, until the flip budget holds."""
    worst_first: list[str] = []
    returned = 0
    while True:
        flips = judges.flips(run_stages(apply_recipe(build(), recipe), judges.rows, runner))
        rate = flips.clear_flips / flips.clear_pairs if flips.clear_pairs else 0.0
        if rate <= options.max_flip_rate:
            return recipe
        if not worst_first:
            recipe, worst_first = _with_sensitivity(recipe, build, judges, runner)
        if returned >= len(worst_first):
            return recipe
        step = worst_first[returned : 2 * returned + 1]
        returned += len(step)
        reason = (
            f"flips: {100 * rate:.2f} % of clear preferences with it in int8, budget {100 * options.max_flip_rate:g} %"
        )
        recipe = _in_float(recipe, step, reason)


def _with_sensitivity(
    recipe: Recipe, build: Callable[[], ir.Model], judges: Judges, runner: StageRunner
) -> tuple[Recipe, list[str]]:
    """Each activation's products in int8 alone, and what that does to the scores; names of activations, worst first."""
    expected = judges.outputs["score"]
    deviation = float(np.nanstd(expected)) or 1.0
    effect = {}
    for name in recipe.activations:
        others = [other for other in recipe.activations if other != name]
        alone = _in_float(recipe, others, "")
        scores = run_stages(apply_recipe(build(), alone), judges.rows, runner)["score"]
        effect[name] = float(np.sqrt(np.nanmean((scores - expected) ** 2))) / deviation
    gemms = {name: replace(gemm, sensitivity=effect[gemm.input]) for name, gemm in recipe.gemms.items()}
    return replace(recipe, gemms=gemms), sorted(effect, key=lambda name: -effect[name])


def _in_float(recipe: Recipe, activations: Sequence[str], reason: str) -> Recipe:
    chosen = set(activations)
    gemms = {
        name: replace(gemm, decision="float", reason=reason) if gemm.input in chosen else gemm
        for name, gemm in recipe.gemms.items()
    }
    return replace(recipe, gemms=gemms)


def _channels(weight: ir.Value) -> int:
    assert weight.const_value is not None
    return int(weight.const_value.shape.numpy()[0])
