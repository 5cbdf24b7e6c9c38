"""A graph cut into stages, one layer each, that run one after the other: memory for one layer runs any model.

Embedding tables are not part of a stage: `lookups` names the Gather nodes whose rows are read straight from the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from rm_export.build import IR_VERSION, OPSET
from rm_export.lowering.gemms import IN_LAYER
from rm_export.tensors import StreamedTensor


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


@dataclass(frozen=True)
class StageModel:
    """A stage as a model of its own. inputs: names of stage inputs, then weights. outputs: of outputs, then taps."""

    model: ir.Model
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def serialised(self) -> bytes:
        """The protobuf bytes; equal layers give equal bytes."""
        content: bytes = ir.serde.serialize_model(self.model).SerializeToString()
        return content


def split_stages(model: ir.Model, taps: Iterable[ir.Value] = ()) -> list[Stage]:
    """The graph's nodes, lookups apart, as stages in an order in which they can run."""
    graph = model.graph
    looked_up = set(lookups(graph))
    layer_of: dict[ir.Node, int] = {}
    for node in graph:
        if node in looked_up:
            continue
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
        nodes = tuple(node for node in graph if layer_of.get(node) == layer)
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


def lookups(graph: ir.Graph) -> list[ir.Node]:
    """Gathers of the graph's own ids from a stored table: too large to be loaded for the few rows that are read."""
    return [
        node
        for node in graph
        if node.op_type == "Gather"
        and node.attributes.get_int("axis", 0) == 0
        and isinstance(_stored(node.inputs[0]), StreamedTensor | ir.ExternalTensor)
        and node.inputs[1] in graph.inputs
    ]


def stage_model(stage: Stage, built_in: bool = False) -> StageModel:
    """The stage as a model of its own.

    Values are named by their place, so that equal layers are equal models; node i is the stage's node i. built_in:
    weights are initializers, as in a bundle, instead of inputs after the others.
    """
    values: dict[ir.Value, ir.Value] = {}
    for place, value in enumerate((*stage.inputs, *stage.weights)):
        shape = value.shape if value in stage.weights else None
        values[value] = ir.Value(name=f"in{place}", type=value.type, shape=shape)
    free = [values[value] for value in ((*stage.inputs,) if built_in else (*stage.inputs, *stage.weights))]
    graph = ir.Graph(free, [], nodes=[], opset_imports=_opsets(stage.nodes), name="stage")
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
    return StageModel(
        ir.Model(graph, ir_version=IR_VERSION),
        tuple(str(value.name) for value in free),
        tuple(str(value.name) for value in graph.outputs),
    )


def _opsets(nodes: Sequence[ir.Node]) -> dict[str, int]:
    return {"": OPSET} | {node.domain: 1 for node in nodes if node.domain}


def _stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None or value.producer() is not None else value.const_value


def _is_constant(value: ir.Value) -> bool:
    return value.producer() is None and value.const_value is not None
