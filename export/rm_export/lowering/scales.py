"""Scales that a low float type can hold, chosen before the integers are made.

A quantised activation is divided by its scale where it is quantised, in float32 or lower, and multiplied by it where it
is dequantised, in the low type: both must be one number. A weight's integers must be made for the scale they will be
multiplied by. So every scale is rounded up to the next number of the low type (nothing newly clips), once, here; from
then on changing its type changes nothing.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from rm_calibration.formats import FORMATS
from rm_export.lowering.packing import FLOAT, PackedScales, PackedValues, Packing, rounded_up
from rm_export.tensors import Array, to_float32

_LARGEST = {ir.DataType.from_numpy(numbers.dtype): numbers.largest for numbers in FORMATS.values()}


class RoundScales(ir.passes.InPlacePass):
    """Requires a graph whose scales are float32. Ensures that each is a number of the low type, and still float32."""

    def __init__(self, dtype: ir.DataType) -> None:
        super().__init__()
        self.low = dtype

    def requires(self, model: ir.Model) -> None:
        for scale in _scales(model.graph):
            if scale.dtype != FLOAT:
                raise ir.passes.PreconditionError(f"scale {scale.name} is {scale.dtype}, not float32")

    def ensures(self, model: ir.Model) -> None:
        inexact = inexact_scale(model.graph, self.low)
        if inexact is not None:
            raise ir.passes.PostconditionError(f"scale {inexact.name} is no number of {self.low}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        packings: dict[Packing, Packing] = {}
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, (PackedValues, PackedScales)):
                rounded = packings.setdefault(tensor.packing, replace(tensor.packing, scale_type=self.low))
                value.const_value = type(tensor)(rounded, str(value.name))
        for node in model.graph:
            if node.op_type != "QuantizeLinear":
                continue
            scale, stored = node.inputs[1], node.outputs[0].dtype
            if scale is not None and scale.const_value is not None and stored is not None:
                up = rounded_up(scale.const_value.numpy(), self.low, str(scale.name), _LARGEST[stored])
                scale.const_value = ir.Tensor(up, name=scale.name)
        return ir.passes.PassResult(model, modified=True)


def inexact_scale(graph: ir.Graph, dtype: ir.DataType) -> ir.Value | None:
    """A scale that the type cannot hold exactly, if there is one. No weight is read for the answer."""
    for scale in _scales(graph):
        tensor = scale.const_value
        if isinstance(tensor, PackedScales):
            exact = tensor.packing.scale_type == dtype
        else:
            exact = tensor is not None and _is_exact(tensor.numpy(), dtype)
        if not exact:
            return scale
    return None


def _scales(graph: ir.Graph) -> list[ir.Value]:
    nodes = (node for node in graph if node.op_type in ("QuantizeLinear", "DequantizeLinear"))
    return list(dict.fromkeys(scale for node in nodes if (scale := node.inputs[1]) is not None))


def _is_exact(numbers: Array, dtype: ir.DataType) -> bool:
    return bool((to_float32(numbers.astype(dtype.numpy())) == numbers).all())
