"""Weight-only quantisation: int8 or int4 weights; activations stay float."""

from __future__ import annotations

import math

import onnx_ir as ir

from rm_export.lowering.constants import add_constant
from rm_export.lowering.gemms import Gemm, find_gemms
from rm_export.lowering.packing import BlockPacking, PackedScales, PackedValues
from rm_export.lowering.quantise import channel_weight
from rm_export.tensors import StreamedTensor

LARGEST_BLOCK = 64
SMALLEST_BLOCK = 16
"""ONNX Runtime's smallest; a product whose inputs do not fall into such blocks stays float."""


class QuantiseWeights(ir.passes.InPlacePass):
    """Requires a float32 graph. Ensures that products whose inputs fall into whole blocks read a DequantizeLinear.

    A scale belongs to a block of inputs of an output channel, or to the whole channel. Blocks are whole since TensorRT
    refuses a last one that is not. A target's dialect may have a product of its own for this form
    (lowering/matmul_nbits.py).
    """

    def __init__(self, bits: int, blocks: bool = True) -> None:
        """bits: 8 or 4. blocks: False, for 8 bits only, gives a whole output channel one scale."""
        super().__init__()
        self.bits, self.blocks = bits, blocks

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        gemms = [gemm for gemm in find_gemms(model.graph) if block_size(gemm) is not None]
        for gemm in gemms:
            weight = self._blocked_weight if self.blocks else channel_weight
            gemm.node.replace_input_with(1, weight(model.graph, gemm))
        return ir.passes.PassResult(model, modified=bool(gemms))

    def ensures(self, model: ir.Model) -> None:
        left = next((gemm for gemm in find_gemms(model.graph) if block_size(gemm) is not None), None)
        if left is not None:
            raise ir.passes.PostconditionError(f"{left.name} is still float")

    def _blocked_weight(self, graph: ir.Graph, gemm: Gemm) -> ir.Value:
        source, size = gemm.weight.const_value, block_size(gemm)
        assert isinstance(source, StreamedTensor)
        assert size is not None
        packing, name = BlockPacking(source, self.bits, size), f"{gemm.name}_int{self.bits}"
        values = add_constant(graph, name, PackedValues(packing, name))
        scales = add_constant(graph, f"{name}_scale", PackedScales(packing, name))
        widen = ir.node(
            "DequantizeLinear",
            [values, scales],
            {"axis": 0, "block_size": size},
            name=f"{gemm.node.name}/weight/DequantizeLinear",
        )
        widened = widen.outputs[0]
        widened.name, widened.dtype, widened.shape = f"{name}_dequantised", ir.DataType.FLOAT, gemm.weight.shape
        graph.insert_before(gemm.node, widen)
        return widened


def block_size(gemm: Gemm) -> int | None:
    """How many inputs of an output channel share a scale: 64, or the largest power of two below that divides them."""
    assert gemm.weight.const_value is not None
    size = math.gcd(gemm.weight.const_value.shape.numpy()[0], LARGEST_BLOCK)
    return size if size >= SMALLEST_BLOCK else None
