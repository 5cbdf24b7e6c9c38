"""Attention without `softmax_precision`, for a parser that refuses the attribute."""

from __future__ import annotations

import onnx_ir as ir


class OmitSoftmaxPrecision(ir.passes.InPlacePass):
    """Ensures that no Attention says in which type its softmax is computed.

    TensorRT's Attention has no such choice: its fused kernels keep the softmax in float32 whatever they read.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        stated = [
            node for node in model.graph if node.op_type == "Attention" and "softmax_precision" in node.attributes
        ]
        for node in stated:
            del node.attributes["softmax_precision"]
        return ir.passes.PassResult(model, modified=bool(stated))
