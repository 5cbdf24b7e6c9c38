"""Passes from the float32 graph to what a target runs."""

from __future__ import annotations

import onnx_ir as ir

from rm_export.lowering.cleanup import Cleanup
from rm_export.lowering.precision import LowerPrecision
from rm_export.lowering.targets import TARGETS, Target, target_for

__all__ = ["TARGETS", "Target", "lower", "target_for"]

_LOW = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def lower(model: ir.Model, precision: str, target: Target) -> ir.Model:
    """The model in `precision` and in the target's dialect; the given model is changed."""
    passes: list[ir.passes.PassBase] = []
    if precision in _LOW:
        passes.append(LowerPrecision(_LOW[precision]))
    passes.append(Cleanup())
    return ir.passes.Sequential(*passes)(model).model
