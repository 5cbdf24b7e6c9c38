"""Static int8 or float8 on both sides of matrix products, as a recipe says.

One dialect for every engine, QuantizeLinear and DequantizeLinear: activations quantised per tensor, weights per output
channel, zero points 0, scales constants. Products that read one activation share one QuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from rm_calibration.formats import INT8, NumberFormat
from rm_export.lowering.constants import add_constant
from rm_export.lowering.gemms import Gemm, gemm_groups
from rm_export.lowering.packing import ChannelPacking, PackedScales, PackedValues
from rm_export.tensors import Computed, StreamedTensor

_FLOAT = ir.DataType.FLOAT


class Quantise(ir.passes.InPlacePass):
    """Requires a float32 graph. Ensures that the named products, and no others, are fed by `numbers` on both sides."""

    def __init__(self, scales: Mapping[str, float], weights: frozenset[str], numbers: NumberFormat = INT8) -> None:
        """scales: activation name -> what its numbers are multiplied by. weights: names of those that are quantised."""
        super().__init__()
        self.numbers = numbers
        self.scales = scales
        self.weights = weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for name, gemms in gemm_groups(model.graph).items():
            chosen = [gemm for gemm in gemms if gemm.name in self.weights]
            if not chosen:
                continue
            activation = _quantised_activation(model.graph, name, chosen[0], self.scales[name], self.numbers)
            for gemm in chosen:
                gemm.node.replace_input_with(0, activation)
                gemm.node.replace_input_with(1, channel_weight(model.graph, gemm, self.numbers))
            modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        for node in model.graph:
            if node.op_type != "MatMul":
                continue
            sources = [value.producer() if value is not None else None for value in node.inputs]
            quantised = [source is not None and source.op_type == "DequantizeLinear" for source in sources]
            if quantised[1] != quantised[0]:
                raise ir.passes.PostconditionError(f"{node.name} is quantised on one side only")


def _quantised_activation(
    graph: ir.Graph, name: str, first: Gemm, multiplier: float, numbers: NumberFormat
) -> ir.Value:
    scale = add_constant(graph, f"{name}.scale", ir.Tensor(np.float32(multiplier).reshape(())))
    zero = add_constant(graph, f"{name}.zero_point", ir.Tensor(np.zeros((), numbers.dtype)))
    activation = first.activation
    quantise = ir.node("QuantizeLinear", [activation, scale, zero], name=f"{first.node.name}/input/QuantizeLinear")
    quantised = quantise.outputs[0]
    quantised.name, quantised.dtype, quantised.shape = (
        f"{name}.{numbers.name}",
        ir.DataType.from_numpy(numbers.dtype),
        activation.shape,
    )
    widen = ir.node("DequantizeLinear", [quantised, scale, zero], name=f"{first.node.name}/input/DequantizeLinear")
    widened = widen.outputs[0]
    widened.name, widened.dtype, widened.shape = f"{name}.dequantised", _FLOAT, activation.shape
    graph.insert_before(first.node, [quantise, widen])
    return widened


def channel_weight(graph: ir.Graph, gemm: Gemm, numbers: NumberFormat = INT8) -> ir.Value:
    """The product's weight, quantised with a scale per output channel: what a new DequantizeLinear gives."""
    source = gemm.weight.const_value
    assert isinstance(source, StreamedTensor)
    packing = ChannelPacking(source, numbers=numbers)
    columns = source.dims[1]
    values = add_constant(graph, f"{gemm.name}_{numbers.name}", PackedValues(packing, gemm.name))
    scales = add_constant(graph, f"{gemm.name}_scale", PackedScales(packing, gemm.name))
    zeros = add_constant(
        graph,
        f"{gemm.name}_zero_point",
        Computed(lambda: np.zeros(columns, numbers.dtype), packing.dtype, (columns,), gemm.name),
    )
    widen = ir.node(
        "DequantizeLinear", [values, scales, zeros], {"axis": 1}, name=f"{gemm.node.name}/weight/DequantizeLinear"
    )
    widened = widen.outputs[0]
    widened.name, widened.dtype, widened.shape = f"{gemm.name}_dequantised", _FLOAT, gemm.weight.shape
    graph.insert_before(gemm.node, widen)
    return widened
