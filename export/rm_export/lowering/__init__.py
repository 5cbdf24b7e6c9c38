"""Passes from the float32 graph to what a target runs."""

from __future__ import annotations

import onnx_ir as ir

from rm_export.errors import ExportError
from rm_export.lowering.attention import OmitSoftmaxPrecision
from rm_export.lowering.cleanup import Cleanup
from rm_export.lowering.embeddings import QuantiseEmbeddings
from rm_export.lowering.matmul_nbits import MatMulNBits
from rm_export.lowering.own_quantisers import OwnQuantisers
from rm_export.lowering.precision import LowerPrecision
from rm_export.lowering.scales import RoundScales
from rm_export.lowering.targets import TARGETS, Target, target_for

__all__ = ["TARGETS", "Target", "lower", "target_for"]

_LOW = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_WEIGHT_ONLY = ("w8", "w4")


def lower(model: ir.Model, precision: str, target: Target, int8_tables: bool = False) -> ir.Model:
    """The model in `precision` and in the target's dialect; the given model is changed.

    For int8, fp8, w8 and w4 the model already has its integers, as Quantise or QuantiseWeights wrote them.
    int8_tables: store embedding tables as int8. Raises ExportError if the target cannot look integers up.
    """
    if int8_tables and not target.int8_tables:
        raise ExportError(f"target {target.name} has no int8 embedding tables; leave them in float")
    passes: list[ir.passes.PassBase] = [QuantiseEmbeddings()] if int8_tables else []
    if precision in _LOW:
        passes.append(LowerPrecision(_LOW[precision]))
    elif precision != "fp32" and target.around_integers != ir.DataType.FLOAT:
        passes += [RoundScales(target.around_integers), LowerPrecision(target.around_integers)]
    if precision in _WEIGHT_ONLY and target.matmul_nbits:
        passes.append(MatMulNBits())
    if target.own_quantisers:
        passes.append(OwnQuantisers())
    if not target.softmax_precision:
        passes.append(OmitSoftmaxPrecision())
    passes.append(Cleanup())
    return ir.passes.Sequential(*passes)(model).model
