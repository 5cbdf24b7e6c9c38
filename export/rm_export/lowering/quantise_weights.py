"""Weight-only quantisation: int8 or int4 weights in blocks along the input axis; activations stay float."""

from __future__ import annotations

import onnx_ir as ir

from rm_export.lowering.constants import add_constant
from rm_export.lowering.gemms import Gemm, find_gemms
from rm_export.lowering.packing import BlockPacking, PackedScales, PackedValues
from rm_export.tensors import StreamedTensor


class QuantiseWeights(ir.passes.InPlacePass):
    """Requires a float32 graph. Ensures that every product of the layers reads its weight from a DequantizeLinear.

    Saves memory. A target's dialect may have a product of its own for this form (lowering/matmul_nbits.py).
    """

    def __init__(self, bits: int, block_size: int = 64) -> None:
        """bits: 8 or 4. block_size: inputs of an output channel that share a scale."""
        super().__init__()
        self.bits = bits
        self.block_size = block_size

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        gemms = list(find_gemms(model.graph))
        for gemm in gemms:
            gemm.node.replace_input_with(1, self._blocked_weight(model.graph, gemm))
        return ir.passes.PassResult(model, modified=bool(gemms))

    def ensures(self, model: ir.Model) -> None:
        left = next(find_gemms(model.graph), None)
        if left is not None:
            raise ir.passes.PostconditionError(f"{left.name} is still float")

    def _blocked_weight(self, graph: ir.Graph, gemm: Gemm) -> ir.Value:
        source = gemm.weight.const_value
        assert isinstance(source, StreamedTensor)
        packing, name = BlockPacking(source, self.bits, self.block_size), f"{gemm.name}_int{self.bits}"
        values = add_constant(graph, name, PackedValues(packing, name))
        scales = add_constant(graph, f"{name}_scale", PackedScales(packing, name))
        widen = ir.node(
            "DequantizeLinear",
            [values, scales],
            {"axis": 0, "block_size": self.block_size},
            name=f"{gemm.node.name}/weight/DequantizeLinear",
        )
        widened = widen.outputs[0]
        widened.name, widened.dtype, widened.shape = f"{name}_dequantised", ir.DataType.FLOAT, gemm.weight.shape
        graph.insert_before(gemm.node, widen)
        return widened
