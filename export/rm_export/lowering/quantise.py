"""Integers around matrix products: static int8 on both sides as a recipe says, or int8/int4 weights alone.

One dialect for every engine, QuantizeLinear and DequantizeLinear: activations int8 per tensor, weights int8 per output
channel, zero points 0, scales constants. Products that read one activation share one QuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rm_calibration.fidelity import check_fidelity
from rm_calibration.weights import (
    QuantisedWeight,
    channel_scales,
    clip_ratios,
    dequantise,
    quantise_blockwise,
    quantise_with,
)
from rm_export.lowering.gemms import Gemm, find_gemms, gemm_groups
from rm_export.tensors import Computed, StreamedTensor, to_float32

_FLOAT, _INT8 = ir.DataType.FLOAT, ir.DataType.INT8


class Quantise(ir.passes.InPlacePass):
    """Requires a float32 graph. Ensures that the named products, and no others, are fed by int8 on both sides."""

    def __init__(self, scales: Mapping[str, float], weights: frozenset[str]) -> None:
        """scales: activation name -> step of its int8. weights: names of the weights that become int8."""
        super().__init__()
        self.scales = scales
        self.weights = weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for name, gemms in gemm_groups(model.graph).items():
            chosen = [gemm for gemm in gemms if gemm.name in self.weights]
            if not chosen:
                continue
            scale = _constant(model.graph, f"{name}.scale", ir.Tensor(np.float32(self.scales[name]).reshape(())))
            zero = _constant(model.graph, f"{name}.zero_point", ir.Tensor(np.int8(0).reshape(())))
            for place, gemm in enumerate(chosen):
                gemm.node.replace_input_with(0, _quantised_activation(model.graph, gemm, scale, zero, place))
                gemm.node.replace_input_with(1, _quantised_weight(model.graph, gemm))
            modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        for node in model.graph:
            if node.op_type != "MatMul":
                continue
            sources = [value.producer() if value is not None else None for value in node.inputs]
            int8 = [source is not None and source.op_type == "DequantizeLinear" for source in sources]
            if int8[1] != int8[0]:
                raise ir.passes.PostconditionError(f"{node.name} is int8 on one side only")


@dataclass(frozen=True)
class _Packed:
    """A weight [in, out] and the int8 form it is given; only its scales are kept."""

    source: StreamedTensor

    @cached_property
    def scales(self) -> NDArray[np.float32]:
        weight = to_float32(self.source.numpy())
        return channel_scales(weight, clip_ratios(weight, tensor=str(self.source.name)), str(self.source.name))

    def values(self) -> NDArray[np.int8]:
        """The int8 weight, checked against its source."""
        weight = to_float32(self.source.numpy())
        packed = quantise_with(weight, self.scales)
        check_fidelity(str(self.source.name), weight, dequantise(packed))
        return packed.values


def _quantised_activation(graph: ir.Graph, gemm: Gemm, scale: ir.Value, zero: ir.Value, place: int) -> ir.Value:
    """The product's input through int8, by nodes of its own even where others read the same activation.

    ONNX Runtime 1.31 makes an integer product only of a QuantizeLinear with one reader; else it widens the weight in
    every run and multiplies in float. It also merges equal nodes: `axis`, which means nothing beside a scalar scale,
    is another one for each `place` among the readers and keeps them apart.
    """
    activation, name = gemm.activation, f"{gemm.name.removesuffix('.weight')}.input"
    axis = {"axis": place % len(activation.shape or (0, 0, 0))}
    quantise = ir.node("QuantizeLinear", [activation, scale, zero], axis, name=f"{gemm.node.name}/input/QuantizeLinear")
    quantised = quantise.outputs[0]
    quantised.name, quantised.dtype, quantised.shape = f"{name}.int8", _INT8, activation.shape
    widen = ir.node("DequantizeLinear", [quantised, scale, zero], axis, name=f"{gemm.node.name}/input/DequantizeLinear")
    widened = widen.outputs[0]
    widened.name, widened.dtype, widened.shape = f"{name}.dequantised", _FLOAT, activation.shape
    graph.insert_before(gemm.node, [quantise, widen])
    return widened


def _quantised_weight(graph: ir.Graph, gemm: Gemm) -> ir.Value:
    source = gemm.weight.const_value
    assert isinstance(source, StreamedTensor)
    packed = _Packed(source)
    rows, columns = source.dims
    values = _constant(graph, f"{gemm.name}_int8", Computed(packed.values, _INT8, (rows, columns), gemm.name))
    scales = _constant(
        graph, f"{gemm.name}_scale", Computed(lambda: packed.scales, _FLOAT, (columns,), f"{gemm.name}_scale")
    )
    zeros = _constant(
        graph,
        f"{gemm.name}_zero_point",
        Computed(lambda: np.zeros(columns, np.int8), _INT8, (columns,), f"{gemm.name}_zero_point"),
    )
    widen = ir.node(
        "DequantizeLinear", [values, scales, zeros], {"axis": 1}, name=f"{gemm.node.name}/weight/DequantizeLinear"
    )
    widened = widen.outputs[0]
    widened.name, widened.dtype, widened.shape = f"{gemm.name}_dequantised", _FLOAT, gemm.weight.shape
    graph.insert_before(gemm.node, widen)
    return widened


class QuantiseWeights(ir.passes.InPlacePass):
    """Weight-only: int8 or int4 weights in blocks along the input axis, as standard DequantizeLinear.

    Saves memory, not time: activations and arithmetic stay float. Requires a float32 graph.
    """

    def __init__(self, bits: int, block_size: int = 64) -> None:
        super().__init__()
        self.bits = bits
        self.block_size = block_size

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for gemm in list(find_gemms(model.graph)):
            gemm.node.replace_input_with(1, self._blocked_weight(model.graph, gemm))
            modified = True
        return ir.passes.PassResult(model, modified)

    def _blocked_weight(self, graph: ir.Graph, gemm: Gemm) -> ir.Value:
        source = gemm.weight.const_value
        assert isinstance(source, StreamedTensor)
        rows, columns = source.dims

        def pack() -> QuantisedWeight:
            weight = to_float32(source.numpy())
            packed = quantise_blockwise(weight, self.bits, self.block_size, gemm.name)
            check_fidelity(gemm.name, weight, dequantise(packed, self.block_size), self.bits)
            return packed

        dtype = _INT8 if self.bits == 8 else ir.DataType.INT4
        blocks = -(-rows // self.block_size)
        name = f"{gemm.name}_int{self.bits}"
        values = _constant(graph, name, Computed(lambda: pack().values, dtype, (rows, columns), name))
        scales = _constant(
            graph, f"{name}_scale", Computed(lambda: pack().scales, _FLOAT, (blocks, columns), f"{name}_scale")
        )
        widen = ir.node(
            "DequantizeLinear",
            [values, scales],
            {"axis": 0, "block_size": self.block_size},
            name=f"{gemm.node.name}/weight/DequantizeLinear",
        )
        widened = widen.outputs[0]
        widened.name, widened.dtype, widened.shape = f"{name}_dequantised", _FLOAT, gemm.weight.shape
        graph.insert_before(gemm.node, widen)
        return widened


def _constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    tensor.name = name
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    graph.register_initializer(value)
    return value
