"""The matrix products of a float graph that can be quantised, and what can take factors of their inputs' channels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rm_calibration.smoothing import grouped_query_channels

IN_LAYER = re.compile(r"^(?:model/layers|(?:pretrained_model|deberta)/encoder/layer)\.(\d+)/")
"""Names of the nodes of a backbone's layers; the group is the layer's number."""

_LAYOUT = frozenset({"Split", "Reshape", "Expand", "Concat"})
"""What only moves numbers about along other axes than the last: a channel's factor passes through unchanged."""

MIN_SIZE = 16
"""Products with fewer input or output channels stay float: they cost nothing and engines have no kernels for them."""


@dataclass(frozen=True)
class Gemm:
    """One MatMul of an activation with a weight [in, out]; `name` is the checkpoint tensor's name."""

    name: str
    node: ir.Node
    weight: ir.Value

    @property
    def activation(self) -> ir.Value:
        """The value it reads, [..., in]."""
        value = self.node.inputs[0]
        assert value is not None
        return value


@dataclass(frozen=True)
class Fold:
    """Where a per-channel factor of an activation can go without a trace.

    kind: "norm": the weight of the RMSNorm that makes the activation; "columns": the output channels of the product
    that makes it. weight: that parameter. bias: the product's bias, if any. tied: for each channel of the activation
    the column that feeds it, where several channels share one (grouped-query attention).
    """

    kind: str
    weight: ir.Value
    bias: ir.Value | None = None
    tied: NDArray[np.intp] | None = None


def find_gemms(graph: ir.Graph) -> Iterator[Gemm]:
    """Every MatMul of the layers whose second input is a weight, in graph order, without small ones and heads."""
    for node in graph:
        if node.op_type != "MatMul" or not IN_LAYER.match(node.name or ""):
            continue
        weight = node.inputs[1]
        if weight is None or weight.const_value is None or weight.shape is None or weight.shape.rank() != 2:
            continue
        if min(weight.const_value.shape.numpy()) >= MIN_SIZE:
            yield Gemm(str(weight.name), node, weight)


def find_fold(activation: ir.Value) -> Fold | None:
    """What can take the activation's channel factors, or None.

    An RMSNorm's output goes into matrix products only, so its weight can. An attention output is a mixture of v's
    channels, head by head. A gated MLP's product is linear in `up`.
    """
    node = activation.producer()
    if node is None:
        return None
    if node.op_type == "RMSNormalization":
        weight = node.inputs[1]
        only_products = all(use.node.op_type == "MatMul" for use in activation.uses())
        return Fold("norm", weight) if weight is not None and only_products else None
    if len(activation.uses()) != 1:
        return None
    attentions = [value.producer() for value in _origins(activation)]
    if all(node is not None and node.op_type == "Attention" for node in attentions):
        return _value_fold([node for node in attentions if node is not None])
    if node.op_type != "Mul":
        return None
    linear = next((found for value in reversed(node.inputs) if value is not None and (found := _linear(value))), None)
    return None if linear is None else Fold("columns", *linear)


def _value_fold(attentions: list[ir.Node]) -> Fold | None:
    """The value projection that all of these attend to, a prefix and its continuations alike."""
    values = {origin for node in attentions if node.inputs[2] is not None for origin in _origins(node.inputs[2])}
    if len(values) != 1:
        return None
    (value,) = values
    linear = _linear(value)
    if linear is None or any((node, place) not in {(n, 2) for n in attentions} for node, place in _readers(value)):
        return None
    heads, kv_heads = (attentions[0].attributes[name].as_int() for name in ("q_num_heads", "kv_num_heads"))
    assert linear[0].const_value is not None
    tied = grouped_query_channels(heads, kv_heads, linear[0].const_value.shape.numpy()[1] // kv_heads)
    return Fold("columns", *linear, tied=tied)


def _origins(value: ir.Value) -> set[ir.Value]:
    """The values whose numbers it holds, laid out otherwise."""
    node = value.producer()
    if node is None or node.op_type not in _LAYOUT:
        return {value}
    moved = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return {origin for source in moved if source is not None for origin in _origins(source)}


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The nodes and input places that compute with its numbers, laid out otherwise or not."""
    for use in value.uses():
        if use.node.op_type in _LAYOUT:
            for output in use.node.outputs:
                yield from _readers(output)
        else:
            yield use.node, use.idx


def _linear(value: ir.Value) -> tuple[ir.Value, ir.Value | None] | None:
    """(weight, bias) if the value is nothing but x @ weight (+ bias) and read once."""
    if len(value.uses()) != 1:
        return None
    node, bias = value.producer(), None
    if node is not None and node.op_type == "Add" and node.inputs[1] is not None and node.inputs[1].producer() is None:
        bias = node.inputs[1]
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type != "MatMul":
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return None
    return weight, bias


def gemm_groups(graph: ir.Graph) -> dict[str, list[Gemm]]:
    """Products by the activation they read (q, k and v share one; gate and up share one): name -> gemms, in order."""
    groups: dict[ir.Value, list[Gemm]] = {}
    for gemm in find_gemms(graph):
        groups.setdefault(gemm.activation, []).append(gemm)
    return {activation_name(gemms[0]): gemms for gemms in groups.values()}


def activation_name(gemm: Gemm) -> str:
    """What a recipe calls the input of a group of products: the first one's weight name, with `input` for `weight`."""
    return gemm.name.removesuffix("weight") + "input"
