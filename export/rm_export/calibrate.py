"""checkpoint + conversations -> recipe: with which numbers each product is quantised, and what that does to the scores.

The float model runs one layer at a time (stages.py). For every quantised activation the smoothing that loses least is
searched, then its int8 range is observed; the products' effects on the final scores are measured on the way
(sensitivity.py). A calibration that is killed goes on at the layer it reached (states.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rm_calibration.conversations import Example
from rm_calibration.formats import INT8, NumberFormat
from rm_calibration.holdout import conversations_digest
from rm_calibration.observers import ChannelMax, observer_named
from rm_calibration.recipe import Activation, Calibration, Clip, Embeddings, Gemm, Recipe, Source
from rm_calibration.smoothing import ALPHAS, RowSample, Smoothing, search_smoothing, smoothing_factors
from rm_calibration.symmetric import scale_of
from rm_calibration.weights import channel_scales, clip_ratios, quantise_with
from rm_export.bundle import Progress
from rm_export.checkpoint import Checkpoint
from rm_export.families import Plan
from rm_export.judges import Judges, affordable_tokens, ask_both_sides
from rm_export.lowering.gemms import Gemm as GraphGemm
from rm_export.lowering.gemms import find_fold, gemm_groups
from rm_export.lowering.quantise import Quantise
from rm_export.lowering.smooth import Smooth
from rm_export.sensitivity import (
    EMBEDDINGS,
    FLOAT,
    ProbedGroup,
    advance_probes,
    copy_name,
    effects,
    probe_rows,
    with_int8_rows,
)
from rm_export.stage_runner import BATCH_TOKENS, LoadedStage, StageRunner, State, collect, start
from rm_export.stages import lookups, split_stages
from rm_export.states import MEMORY_BYTES, SECONDS_BETWEEN_SAVES, Resume, States
from rm_runtime.batching import plan_batches

TABLE_EFFECT = 0.01
"""Embedding tables become int8 if that alone moves the scores by less, in standard deviations: they save no time."""


@dataclass(frozen=True)
class CalibrationOptions:
    """How a recipe is made.

    observer: rule that clips activations ("mse", "minmax", "percentile", "entropy"). alphas: smoothing strengths that
    are tried; (0.0,) switches smoothing off. max_flip_rate: share of clear preferences (margin beyond 0.1 standard
    deviations) on held-out conversations that may be decided otherwise than in float. max_tokens: ids of either side
    of the split that are used, whole examples; None: as judges.affordable_tokens says. threads: for the engine.
    memory_bytes: of hidden states; more goes to the disk. seconds_between_saves: of what a killed calibration goes
    on from.
    """

    observer: str = "mse"
    alphas: Sequence[float] = ALPHAS
    max_flip_rate: float = 0.01
    max_tokens: int | None = None
    threads: int | None = None
    memory_bytes: int = MEMORY_BYTES
    seconds_between_saves: float = SECONDS_BETWEEN_SAVES


Groups = Mapping[str, list[GraphGemm]]


def calibrate(
    build: Callable[[], ir.Model],
    plan: Plan,
    family: str,
    checkpoint: Checkpoint,
    examples: Sequence[Example],
    options: CalibrationOptions,
    work: Path,
    progress: Progress,
) -> tuple[Recipe, Judges]:
    """Make the recipe; also return the held-out judges with their float outputs.

    build: makes a fresh float32 graph of the plan. work: a folder for what a restart needs; the caller removes it when
    the recipe is safe. Raises CalibrationError if the conversations are too few, or an activation is not
    finite.
    """
    model = build()
    groups = gemm_groups(model.graph)
    calibrating, judging = ask_both_sides(plan, examples, options.max_tokens or affordable_tokens(model))
    recipe = Recipe(
        family=family,
        source=Source(checkpoint.id, checkpoint.config_sha256),
        calibration=Calibration(
            digest=conversations_digest(examples),
            conversations=len({question.line for question in calibrating.questions}),
            tokens=calibrating.tokens,
            observer=options.observer,
        ),
        activations={},
        gemms={},
        versions={name: metadata.version(name) for name in ("rm-export", "onnxruntime", "numpy")},
    )
    rows = [calibrating.rows, judging.rows]
    batches = [plan_batches([len(row) for row in side], BATCH_TOKENS) for side in rows]
    # A copy a group is carried through half of the layers on average: about twice the work of the judging rows.
    probing = probe_rows([len(row) for row in rows[1]], 4 * judging.tokens // max(1, len(groups)))
    shape = (len(probing), max(len(rows[1][row]) for row in probing))
    starts = {
        **{f"calibrating {n}": [rows[0][row] for row in batch] for n, batch in enumerate(batches[0])},
        **{f"judging {n}": [rows[1][row] for row in batch] for n, batch in enumerate(batches[1])},
        FLOAT: [rows[1][row] for row in probing],
    }
    resume = Resume(work, _key(recipe, checkpoint, options, starts), options.seconds_between_saves)
    states = States(resume.stage_folder(0), options.memory_bytes)
    done, recipe = _take_up(resume, states, recipe, progress)
    if not done:
        states.update(zip(starts, start(model, list(starts.values())), strict=True))
        looked_up = [str(node.outputs[0].name) for node in lookups(model.graph)]
        if looked_up:
            states[copy_name(EMBEDDINGS)] = with_int8_rows(states[FLOAT], looked_up)
    runner = StageRunner(options.threads)
    stages = split_stages(model, [gemms[0].activation for gemms in groups.values()])
    progress.begin("calibrating", len(stages), "layers")
    progress.advance(done)
    for number, stage in enumerate(stages[done:], start=done + 1):
        states.move_to(resume.stage_folder(number))
        own = set(stage.nodes)
        inside = {name: gemms for name, gemms in groups.items() if gemms[0].node in own}
        recipe = _calibrate_stage(runner.open(stage), runner, inside, states, shape, recipe, options)
        resume.save(number, states, partial(_findings, recipe))
        progress.advance(1)
    outputs = collect(model, [states[f"judging {n}"] for n in range(len(batches[1]))], batches[1])
    deviation = float(np.nanstd(outputs["score"])) or 1.0
    found = effects(states, deviation)
    gemms = {name: replace(gemm, sensitivity=found[gemm.input]) for name, gemm in recipe.gemms.items()}
    return replace(recipe, gemms=gemms, embeddings=_decide_tables(found.get(EMBEDDINGS))), Judges(judging, outputs)


def apply_recipe(model: ir.Model, recipe: Recipe, numbers: NumberFormat = INT8) -> ir.Model:
    """The float32 graph smoothed and quantised as the recipe says; the given model is changed.

    A recipe is made for int8. In float8 the same products are quantised, and nothing is clipped.
    """
    channels = {name: _channels(gemms[0].weight) for name, gemms in gemm_groups(model.graph).items()}
    quantised = frozenset(name for name, gemm in recipe.gemms.items() if gemm.decision == "int8")
    read = {gemm.input for name, gemm in recipe.gemms.items() if name in quantised}
    exponents = {name: recipe.activations[name].exponents(channels[name]) for name in read}
    scales = {name: _scale(recipe.activations[name], numbers) for name in read}
    return ir.passes.Sequential(Smooth(exponents), Quantise(scales, quantised, numbers))(model).model


def _scale(activation: Activation, numbers: NumberFormat) -> float:
    return activation.scale if numbers.clips else scale_of(activation.largest_smoothed, numbers.largest)


def _decide_tables(effect: float | None) -> Embeddings:
    if effect is None:
        return Embeddings("float", "no table is looked up by the ids themselves")
    if effect > TABLE_EFFECT:
        return Embeddings(
            "float", f"int8 tables alone move the scores by more than {TABLE_EFFECT:g} deviations", effect
        )
    return Embeddings("int8", "within the flip budget", effect)


def _calibrate_stage(
    loaded: LoadedStage,
    runner: StageRunner,
    inside: Groups,
    states: States,
    shape: tuple[int, int],
    recipe: Recipe,
    options: CalibrationOptions,
) -> Recipe:
    """Find the numbers of a stage's products, and move all states behind it; the recipe with them."""
    calibrating = [name for name in states if name.startswith("calibrating")]
    smoothed = _choose_smoothing(loaded, inside, [states[name] for name in calibrating], options)
    activations = _observe_and_advance(loaded, inside, smoothed, calibrating, states, options)
    for name in [name for name in states if name.startswith("judging")]:
        states[name] = loaded.after(states[name], loaded.run(states[name]))
    gemms, probed = {}, []
    for name, group in inside.items():
        factors, weights = smoothing_factors(smoothed[name].exponents), []
        for gemm in group:
            weight = loaded.weight(gemm.weight) * factors[:, None]
            ratios = clip_ratios(weight, tensor=gemm.name)
            weights.append(quantise_with(weight, channel_scales(weight, ratios, gemm.name)))
            gemms[gemm.name] = Gemm(name, "int8", "within the flip budget", Clip("mse", float(ratios.mean())))
        probed.append(ProbedGroup(name, group, activations[name].scale, factors, weights))
    advance_probes(loaded, runner, probed, states, shape)
    return replace(recipe, activations={**recipe.activations, **activations}, gemms={**recipe.gemms, **gemms})


def _choose_smoothing(
    loaded: LoadedStage, inside: Groups, states: Sequence[State], options: CalibrationOptions
) -> dict[str, Smoothing]:
    """First look at the stage: channel maxima and a sample of rows -> how each activation is smoothed."""
    maxima = {name: ChannelMax(name) for name in inside}
    samples = {name: RowSample() for name in inside}
    for state in states if inside else ():
        results = loaded.run_with_taps(state)
        for name, gemms in inside.items():
            values = _real_rows(results, gemms[0].activation, state)
            maxima[name].observe(values)
            samples[name].observe(values)
    chosen = {}
    for name, gemms in inside.items():
        fold = find_fold(gemms[0].activation)
        chosen[name] = search_smoothing(
            samples[name].rows(),
            maxima[name].maxima(),
            [loaded.weight(gemm.weight) for gemm in gemms],
            options.observer,
            None if fold is None else fold.tied,
            options.alphas,
        )
    return chosen


def _observe_and_advance(
    loaded: LoadedStage,
    inside: Groups,
    smoothed: Mapping[str, Smoothing],
    calibrating: Sequence[str],
    states: States,
    options: CalibrationOptions,
) -> dict[str, Activation]:
    """Second look: the range of each activation as it will be, smoothed. The states move behind the stage."""
    observers = {name: observer_named(options.observer, name) for name in inside}
    before, after = ({name: ChannelMax(name) for name in inside} for _ in range(2))
    inverse = {name: 1 / smoothing_factors(smoothed[name].exponents) for name in inside}
    for batch in calibrating:
        state = states[batch]
        results = loaded.run_with_taps(state)
        for name, gemms in inside.items():
            values = _real_rows(results, gemms[0].activation, state)
            before[name].observe(values)
            smooth = values * inverse[name]
            after[name].observe(smooth)
            observers[name].observe(smooth)
        states[batch] = loaded.after(state, results)
    activations = {}
    for name, smoothing in smoothed.items():
        amax = observers[name].amax()
        activations[name] = Activation(
            amax=amax,
            scale=scale_of(amax),
            observer=options.observer,
            largest=float(before[name].maxima().max()),
            largest_smoothed=float(after[name].maxima().max()),
            alpha=smoothing.alpha,
            smoothing=tuple(int(e) for e in smoothing.exponents) if smoothing.exponents.any() else None,
        )
    return activations


def _real_rows(results: State, activation: ir.Value, state: State) -> NDArray[np.float32]:
    """The activation [batch, sequence, channels] without padding: [tokens, channels].

    Where a last layer keeps only the positions its head reads, there is no padding any more.
    """
    name = str(activation.name)
    values = results[name] if name in results else state[name]
    assert activation.shape is not None
    whole = str(activation.shape[1]) == "sequence"
    rows: NDArray[np.float32] = values[state["attention_mask"].astype(bool)] if whole else values
    return rows


def _findings(recipe: Recipe) -> str:
    return recipe.to_yaml() if recipe.gemms else ""


def _take_up(resume: Resume, states: States, recipe: Recipe, progress: Progress) -> tuple[int, Recipe]:
    """(stages already done, the recipe so far)."""
    found = resume.take_up(states)
    if isinstance(found, str):
        progress.note(found)
    if found is None or isinstance(found, str):
        return 0, recipe
    done, findings = found
    progress.note(f"continuing the interrupted calibration after {done} layers")
    return done, Recipe.from_yaml(findings, str(resume.folder)) if findings else recipe


def _key(
    recipe: Recipe,
    checkpoint: Checkpoint,
    options: CalibrationOptions,
    starts: Mapping[str, Sequence[NDArray[np.int64]]],
) -> str:
    """Digest of what a calibration's result depends on; weight files count by size and time of change."""
    files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in checkpoint.folder.glob("*"))
    document = {
        "family": recipe.family,
        "config": recipe.source.config_sha256,
        "files": files,
        "versions": dict(recipe.versions),
        "options": {key: asdict(options)[key] for key in ("observer", "alphas", "max_tokens")},
        "rows": {name: [row.tolist() for row in rows] for name, rows in starts.items()},
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _channels(weight: ir.Value) -> int:
    assert weight.const_value is not None
    return int(weight.const_value.shape.numpy()[0])
