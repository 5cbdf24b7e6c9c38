"""What each group of quantised products does to the final scores alone, measured in one pass over the layers.

For a few rows, one copy of the hidden states for each group is carried along: it is computed as if that group alone
were int8, and from then on in float. After the last layer, the copies' scores differ from the float ones by that
group's effect, exactly, and a model of any depth has been read once.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rm_calibration.symmetric import scales_of
from rm_calibration.weights import QuantisedWeight, dequantise
from rm_export.lowering.gemms import Gemm
from rm_export.stage_runner import BATCH_TOKENS, LoadedStage, StageRunner, State
from rm_export.stages import Stage, StageModel, stage_model

FLOAT = "probe"
"""Name of the state that stays float."""

EMBEDDINGS = "embeddings"
"""Name of the copy whose looked-up rows are rounded to int8."""

_SCALE, _INVERSE = "scale", "inverse"


@dataclass(frozen=True)
class ProbedGroup:
    """Products that read one activation, as they will be quantised.

    scale: of the activation's int8. factors: [channels] its smoothing. weights: of each product, after smoothing.
    """

    name: str
    gemms: Sequence[Gemm]
    scale: float
    factors: NDArray[np.float32]
    weights: Sequence[QuantisedWeight]


def probe_rows(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Rows to probe with: shortest first, padding counted, at least two, their number unequal to their length.

    Unequal, so that an array's first axis tells whether it has an entry for each row.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    chosen = order[:2]
    for row in order[2:]:
        if (len(chosen) + 1) * lengths[row] > max_tokens:
            break
        chosen.append(row)
    if len(chosen) == max(lengths[row] for row in chosen):
        chosen.pop()
    return chosen


def with_int8_rows(state: State, looked_up: Sequence[str]) -> State:
    """The state at the start with the named embedding rows [batch, sequence, size] rounded to int8, row by row."""
    rounded = {}
    for name in looked_up:
        rows = state[name]
        scales = scales_of(np.abs(rows).max(axis=-1, keepdims=True))
        rounded[name] = np.rint(rows / scales) * scales
    return state | rounded


def advance_probes(
    loaded: LoadedStage,
    runner: StageRunner,
    groups: Sequence[ProbedGroup],
    states: MutableMapping[str, State],
    shape: tuple[int, int],
) -> None:
    """One stage: branch a copy off for each of its groups, move all earlier copies on. Changes `states`.

    shape: (rows, their padded length) of the probe's batch.
    """
    before = states[FLOAT]
    rows = shape[0]
    branched = {copy_name(group.name): _run_quantised(loaded, runner, group, before) for group in groups}
    names = [name for name in states if name.startswith(FLOAT)]
    together = max(1, BATCH_TOKENS // (shape[0] * shape[1]))
    for first in range(0, len(names), together):
        chunk = names[first : first + together]
        moving = [states[name] for name in chunk]
        results = loaded.run(_stacked(moving, rows))
        for place, (name, state) in enumerate(zip(chunk, moving, strict=True)):
            states[name] = loaded.after(state, _part(results, place, rows, len(chunk)))
    for name, results in branched.items():
        states[name] = loaded.after(before, results)


def effects(states: Mapping[str, State], deviation: float) -> dict[str, float]:
    """After the last stage: group name -> root mean square change of the scores, in units of `deviation`."""
    expected = states[FLOAT]["score"]
    scorable = np.isfinite(expected)
    found = {}
    for name, state in states.items():
        if name.startswith(FLOAT) and name != FLOAT:
            change = (state["score"] - expected)[scorable].astype(np.float64)
            found[name.removeprefix(f"{FLOAT} ")] = (
                float(np.sqrt(np.mean(change**2))) / deviation if len(change) else 0.0
            )
    return found


def probed_model(stage: Stage, readers: Sequence[ir.Node]) -> StageModel:
    """The stage's model with the first input of these products smoothed and rounded to int8.

    Two more inputs: `inverse` [channels], `scale`. Weights are inputs: the caller gives their dequantised values.
    """
    written = stage_model(stage)
    graph = written.model.graph
    nodes = list(graph)
    own = [nodes[stage.nodes.index(reader)] for reader in readers]
    inverse, scale = (ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in (_INVERSE, _SCALE))
    graph.inputs.extend([inverse, scale])
    scale.shape = ir.Shape([])
    zero = ir.Value(name="zero_point", type=ir.TensorType(ir.DataType.INT8), shape=ir.Shape([]))
    zero.const_value = ir.Tensor(np.int8(0).reshape(()), name="zero_point")
    graph.register_initializer(zero)
    smoothed = ir.node("Mul", [own[0].inputs[0], inverse], name="smoothed")
    rounded = ir.node("QuantizeLinear", [smoothed.outputs[0], scale, zero], name="rounded")
    widened = ir.node("DequantizeLinear", [rounded.outputs[0], scale, zero], name="widened")
    for place, node in enumerate((smoothed, rounded, widened)):
        node.outputs[0].name = f"probed{place}"
    graph.insert_before(own[0], [smoothed, rounded, widened])
    for reader in own:
        reader.replace_input_with(0, widened.outputs[0])
    return StageModel(written.model, (*written.inputs, _INVERSE, _SCALE), written.outputs)


def _run_quantised(loaded: LoadedStage, runner: StageRunner, group: ProbedGroup, before: State) -> State:
    session = runner.compiled(probed_model(loaded.stage, [gemm.node for gemm in group.gemms]))
    weights = {
        loaded.weight_input(gemm.weight): dequantise(weight)
        for gemm, weight in zip(group.gemms, group.weights, strict=True)
    }
    numbers = {_INVERSE: 1 / group.factors, _SCALE: np.asarray(group.scale, np.float32)}
    names = loaded.outputs[: len(loaded.stage.outputs)]
    arrays = session.run(list(names), loaded.feeds(before) | weights | numbers)
    return {str(value.name): array for value, array in zip(loaded.stage.outputs, arrays, strict=True)}


def _stacked(states: Sequence[State], rows: int) -> State:
    """Copies of the same rows as one batch; what has no row axis is the same in all."""
    first = states[0]
    return {
        name: np.concatenate([state[name] for state in states]) if array.shape[:1] == (rows,) else array
        for name, array in first.items()
    }


def _part(results: State, place: int, rows: int, copies: int) -> State:
    return {
        name: array[place * rows : (place + 1) * rows] if array.shape[:1] == (rows * copies,) else array
        for name, array in results.items()
    }


def copy_name(group: str) -> str:
    """What the state is called that carries one group's effect."""
    return f"{FLOAT} {group}"
