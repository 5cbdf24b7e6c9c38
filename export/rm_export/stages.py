"""A graph run one layer at a time: each layer's part is compiled once, its weights are streamed in as inputs.

This is how calibration and its proof run a model that does not fit into memory: what is held is one layer's weights
and the values that flow between layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rm_export.build import IR_VERSION, OPSET
from rm_export.errors import ExportError
from rm_export.lowering.gemms import IN_LAYER
from rm_export.tensors import StreamedTensor

Array = NDArray[Any]


@dataclass(frozen=True)
class Stage:
    """Part of a graph: before the layers, one layer, or after them.

    inputs: values of earlier stages or of the graph that it reads. weights: streamed initializers it reads.
    outputs: values that later stages or the graph's caller read. taps: values inside that an observer wants.
    """

    name: str
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    weights: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    taps: tuple[ir.Value, ...] = ()


def split_stages(model: ir.Model, taps: Iterable[ir.Value] = ()) -> list[Stage]:
    """The graph's nodes as stages, in an order in which they can run."""
    graph = model.graph
    layer_of: dict[ir.Node, int] = {}
    for node in graph:
        found = IN_LAYER.match(node.name or "")
        before = [layer_of[p] for value in node.inputs if value is not None and (p := value.producer()) in layer_of]
        layer_of[node] = int(found[1]) if found else max(before, default=-1)
    depth = max(layer_of.values(), default=-1)
    for node, layer in layer_of.items():
        if layer >= 0 and not IN_LAYER.match(node.name or ""):
            layer_of[node] = depth + 1
    wanted, finals = set(taps), set(graph.outputs)
    stages = []
    for layer in range(-1, depth + 2):
        nodes = tuple(node for node in graph if layer_of[node] == layer)
        inside = {value for node in nodes for value in node.outputs}
        reads = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
        outputs = [
            value for value in inside if value in finals or any(layer_of[use.node] != layer for use in value.uses())
        ]
        name = "before the layers" if layer < 0 else "after the layers" if layer > depth else f"layer {layer}"
        stages.append(
            Stage(
                name,
                nodes,
                tuple(v for v in reads if v not in inside and not _is_constant(v)),
                tuple(v for v in reads if v not in inside and isinstance(v.const_value, StreamedTensor)),
                tuple(sorted(outputs, key=lambda value: value.name or "")),
                tuple(value for value in inside if value in wanted and value not in outputs),
            )
        )
    return stages


class StageRunner:
    """Runs stages; layers of one shape share one compiled session."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads
        self._sessions: dict[bytes, Any] = {}

    def open(self, stage: Stage) -> LoadedStage:
        """The stage with its weights in memory. Raises ExportError if no engine is installed."""
        model, inputs, outputs = stage_model(stage)
        proto = ir.serde.serialize_model(model).SerializeToString()
        if proto not in self._sessions:
            self._sessions[proto] = self.compiled(proto)
        weights = {
            name: value.const_value.numpy()
            for name, value in zip(inputs[len(stage.inputs) :], stage.weights, strict=True)
            if value.const_value is not None
        }
        return LoadedStage(stage, self._sessions[proto], inputs[: len(stage.inputs)], outputs, weights)

    def compiled(self, model: bytes | str) -> Any:
        """An ONNX Runtime session of a serialised model or of a file's path."""
        try:
            import onnxruntime
        except ImportError:
            raise ExportError("calibration runs the model with onnxruntime; pip install 'rm-export[cpu]'") from None
        from rm_runtime.engines.cores import usable_cores

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or usable_cores()
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class LoadedStage:
    """A stage ready to run on row after row."""

    stage: Stage
    session: Any
    inputs: Sequence[str]
    outputs: Sequence[str]
    weights: Mapping[str, Array]

    def weight(self, value: ir.Value) -> Array:
        """One of the stage's weights, in memory."""
        return self.weights[f"in{len(self.stage.inputs) + self.stage.weights.index(value)}"]

    def run(self, values: Mapping[ir.Value, Array]) -> dict[ir.Value, Array]:
        """What flows in, by value -> the stage's outputs and taps, by value."""
        feeds = dict(self.weights)
        for name, value in zip(self.inputs, self.stage.inputs, strict=True):
            feeds[name] = values[value]
        arrays = self.session.run(list(self.outputs), feeds)
        return dict(zip((*self.stage.outputs, *self.stage.taps), arrays, strict=True))


def run_stages(
    model: ir.Model, rows: Sequence[NDArray[np.int64]], runner: StageRunner
) -> dict[str, NDArray[np.float32]]:
    """The graph's outputs for every row of ids, each row alone and unpadded, one layer at a time."""
    states = [start(model, row) for row in rows]
    for stage in split_stages(model):
        loaded = runner.open(stage)
        for place, state in enumerate(states):
            states[place] = advance(state, loaded.run(state), stage)
    return collect(model, states)


def start(model: ir.Model, ids: NDArray[np.int64]) -> dict[ir.Value, Array]:
    """The graph's inputs for one row."""
    arrays = {"input_ids": ids[None, :], "attention_mask": np.ones((1, len(ids)), np.int64)}
    return {value: arrays[str(value.name)] for value in model.graph.inputs}


def advance(state: Mapping[ir.Value, Array], results: Mapping[ir.Value, Array], stage: Stage) -> dict[ir.Value, Array]:
    """What flows on after a stage: its outputs, and earlier values that something later still reads."""
    done = set(stage.nodes)
    kept = {value: array for value, array in state.items() if any(use.node not in done for use in value.uses())}
    return kept | {value: results[value] for value in stage.outputs}


def collect(model: ir.Model, states: Sequence[Mapping[ir.Value, Array]]) -> dict[str, NDArray[np.float32]]:
    """The graph's outputs after the last stage: name -> [rows, ...]."""
    return {
        str(value.name): np.concatenate([state[value] for state in states]).astype(np.float32)
        for value in model.graph.outputs
    }


def _is_constant(value: ir.Value) -> bool:
    return value.producer() is None and value.const_value is not None


def stage_model(stage: Stage, built_in: bool = False) -> tuple[ir.Model, list[str], list[str]]:
    """The stage as a model of its own, and the names of its inputs and outputs.

    Values are named by their place, so that equal layers are equal models. built_in: weights are initializers, as in a
    bundle, instead of inputs after the others.
    """
    values: dict[ir.Value, ir.Value] = {}
    for place, value in enumerate((*stage.inputs, *stage.weights)):
        shape = value.shape if value in stage.weights else None
        values[value] = ir.Value(name=f"in{place}", type=value.type, shape=shape)
    free = [values[value] for value in ((*stage.inputs,) if built_in else (*stage.inputs, *stage.weights))]
    graph = ir.Graph(free, [], nodes=[], opset_imports={"": OPSET}, name="stage")
    for value in stage.weights if built_in else ():
        values[value].const_value = value.const_value
        graph.register_initializer(values[value])
    for place, node in enumerate(stage.nodes):
        for source in node.inputs:
            if source is not None and source not in values:
                constant = ir.Value(
                    name=f"c{len(values)}", type=source.type, shape=source.shape, const_value=source.const_value
                )
                graph.register_initializer(constant)
                values[source] = constant
        outputs = [ir.Value(name=f"v{place}_{o}", type=value.type) for o, value in enumerate(node.outputs)]
        inputs = [None if value is None else values[value] for value in node.inputs]
        graph.append(
            ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), outputs=outputs, name=f"n{place}")
        )
        values.update(zip(node.outputs, outputs, strict=True))
    graph.outputs.extend(values[value] for value in (*stage.outputs, *stage.taps))
    names = [str(value.name) for value in graph.outputs]
    return ir.Model(graph, ir_version=IR_VERSION), [str(value.name) for value in free], names
