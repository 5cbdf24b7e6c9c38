"""The contrib form of weight-only quantisation: ONNX Runtime's com.microsoft.MatMulNBits, which OpenVINO reads as well.

ONNX Runtime makes this product out of DequantizeLinear -> MatMul by itself, but then rounds the activations to int8
in blocks too. Written out, its accuracy level is ours to choose.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rm_calibration.fidelity import FidelityCheck
from rm_calibration.weights import QuantisedWeight, dequantise
from rm_export.lowering.constants import add_constant
from rm_export.lowering.packing import BlockPacking, PackedValues, held
from rm_export.tensors import Array, BlockMapped, StreamedTensor, to_float32, transpose

DOMAIN = "com.microsoft"

FLOAT32_ACTIVATIONS = 1
"""accuracy_level: activations stay float32. 4 rounds them to int8 in blocks: faster, and it costs decisions where
channels stick out (docs/int8.md)."""


class MatMulNBits(ir.passes.InPlacePass):
    """Requires weights in blocks as QuantiseWeights leaves them. Ensures that each is read by a MatMulNBits alone."""

    def __init__(self, accuracy_level: int = FLOAT32_ACTIVATIONS) -> None:
        """accuracy_level: of the operator: 0 the engine's choice, 1 float32, 4 int8 activations."""
        super().__init__()
        self.accuracy_level = accuracy_level

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        products = [(node, packing) for node in graph if (packing := _packing(node)) is not None]
        for node, packing in products:
            self._replace(graph, node, packing)
        if products:
            model.opset_imports[DOMAIN] = 1
        ir.passes.common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(products))

    def ensures(self, model: ir.Model) -> None:
        left = next((node for node in model.graph if _packing(node) is not None), None)
        if left is not None:
            raise ir.passes.PostconditionError(f"{left.name} is not a MatMulNBits")

    def _replace(self, graph: ir.Graph, node: ir.Node, packing: BlockPacking) -> None:
        inputs, outputs = packing.source.dims
        activation, weight = node.inputs
        dtype = node.outputs[0].dtype
        assert activation is not None
        assert weight is not None
        assert dtype is not None
        name = f"{weight.name}".removesuffix("_dequantised")
        product = ir.node(
            "MatMulNBits",
            [
                activation,
                add_constant(graph, f"{name}_packed", packed_bytes(packing, name)),
                add_constant(graph, f"{name}_packed_scale", packed_scales(packing, dtype, name)),
            ],
            {
                "K": inputs,
                "N": outputs,
                "bits": packing.bits,
                "block_size": packing.block_size,
                "accuracy_level": self.accuracy_level,
            },
            domain=DOMAIN,
            name=node.name,
        )
        result, old = product.outputs[0], node.outputs[0]
        result.name, result.dtype, result.shape = old.name, dtype, old.shape
        graph.insert_before(node, product)
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        graph.remove(node, safe=True)


def packed_bytes(packing: BlockPacking, name: str) -> StreamedTensor:
    """The operator's B, uint8 [out, blocks, block_size * bits / 8], made a few output channels at a time."""
    inputs, outputs = packing.source.dims
    width = packing.block_size * packing.bits // 8

    def pack_rows(pieces: Iterator[Array]) -> Iterator[Array]:
        check = FidelityCheck(str(packing.source.name), packing.format_name)
        for piece in pieces:
            weight = to_float32(piece).T
            quantised = packing.quantised(weight)
            packed = pack(quantised.values, packing.bits, packing.block_size)
            read = QuantisedWeight(unpack(packed, packing.bits, inputs), quantised.scales)
            check.add(held(weight, packing.scale_type), dequantise(read, packing.block_size))
            yield packed
        check.result()

    shape = (outputs, packing.scale_dims[0], width)
    return BlockMapped(transpose(packing.source), pack_rows, ir.DataType.UINT8, shape, name)


def packed_scales(packing: BlockPacking, dtype: ir.DataType, name: str) -> StreamedTensor:
    """The operator's scales [out, blocks] in the type of its activations, which holds them exactly."""

    def scale_rows(pieces: Iterator[Array]) -> Iterator[Array]:
        for piece in pieces:
            yield packing.quantised(to_float32(piece).T).scales.T.astype(dtype.numpy())

    return BlockMapped(transpose(packing.source), scale_rows, dtype, packing.scale_dims[::-1], name)


def pack(values: NDArray[np.int8], bits: int, block_size: int) -> NDArray[np.uint8]:
    """Integers [in, out] -> bytes [out, blocks, block_size * bits / 8]: offset by 2**(bits - 1), low halves first."""
    padded = np.pad(values, ((0, -len(values) % block_size), (0, 0)))
    offset = (padded.T.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    blocked: NDArray[np.uint8] = offset.reshape(values.shape[1], -1, block_size)
    return blocked if bits == 8 else blocked[..., ::2] | blocked[..., 1::2] << np.uint8(4)


def unpack(packed: NDArray[np.uint8], bits: int, inputs: int) -> NDArray[np.int8]:
    """What the engine reads out of `pack`'s bytes, [inputs, out]."""
    blocked = packed if bits == 8 else np.stack([packed & 0xF, packed >> 4], axis=-1)
    offset = blocked.reshape(len(packed), -1)[:, :inputs]
    return (offset.astype(np.int16) - (1 << (bits - 1))).astype(np.int8).T


def _packing(node: ir.Node) -> BlockPacking | None:
    """How the weight of a MatMul is packed, if it comes in blocks."""
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    widen = weight.producer() if weight is not None else None
    values = widen.inputs[0] if widen is not None and widen.op_type == "DequantizeLinear" else None
    tensor = values.const_value if values is not None else None
    packing = tensor.packing if isinstance(tensor, PackedValues) else None
    return packing if isinstance(packing, BlockPacking) else None
