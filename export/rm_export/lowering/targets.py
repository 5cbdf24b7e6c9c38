"""What each engine family can run, one frozen record each. Passes and checks ask the record, never a name."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from rm_export.errors import ExportError


@dataclass(frozen=True)
class Target:
    """A dialect of ONNX.

    precisions: what a graph for this target may be lowered to. engines: which runtimes read it.
    around_integers: the float type between quantised products (float32: nothing is lowered). matmul_nbits: weight-only
    products are MatMulNBits, else standard DequantizeLinear and MatMul. int8_tables: integer embedding tables can be
    looked up. own_quantisers: every product has a QuantizeLinear of its own, else those that read one activation share.
    shared_prefix: a second graph computes what rows have in common once; its engine must take any lengths.
    softmax_precision: Attention may say in which type its softmax is computed. int8_blocks: 8-bit weights have a scale
    for each block of inputs, else one for each output channel (TensorRT's blocks are of 4 bits; with 8 its compiler
    fails on the graph of a shared prefix).
    """

    name: str
    precisions: frozenset[str]
    engines: tuple[str, ...]
    around_integers: ir.DataType
    matmul_nbits: bool
    int8_tables: bool
    own_quantisers: bool
    shared_prefix: bool
    softmax_precision: bool
    int8_blocks: bool


_INTEGERS = frozenset({"int8", "w8", "w4"})
_FLOAT, _FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16

TARGETS = {
    target.name: target
    for target in (
        Target(
            "cpu",
            precisions=_INTEGERS | {"fp32", "fp16"},
            engines=("onnxruntime", "openvino"),
            around_integers=_FLOAT,
            matmul_nbits=True,
            int8_tables=True,
            own_quantisers=True,
            shared_prefix=True,
            softmax_precision=True,
            int8_blocks=True,
        ),
        Target(
            "cuda",
            precisions=_INTEGERS | {"fp32", "fp16", "bf16"},
            engines=("onnxruntime",),
            around_integers=_FLOAT16,
            matmul_nbits=True,
            int8_tables=True,
            own_quantisers=False,
            shared_prefix=False,  # until its attention has run on a GPU
            softmax_precision=True,
            int8_blocks=True,
        ),
        Target(
            "tensorrt",
            precisions=_INTEGERS | {"fp8", "fp32", "fp16", "bf16"},
            engines=("tensorrt",),
            around_integers=_FLOAT16,
            matmul_nbits=False,
            int8_tables=False,
            own_quantisers=False,
            shared_prefix=True,
            softmax_precision=False,
            int8_blocks=False,
        ),
    )
}


def target_for(name: str, precision: str) -> Target:
    """The target's record. Raises ExportError if it is unknown or cannot run that precision."""
    target = TARGETS.get(name)
    if target is None:
        raise ExportError(f"unknown target {name!r} (known: {', '.join(TARGETS)})")
    if precision not in target.precisions:
        able = [other.name for other in TARGETS.values() if precision in other.precisions]
        hint = f"; {precision} runs on --target {' or '.join(able)}" if able else ""
        raise ExportError(f"target {name} runs {', '.join(sorted(target.precisions))}, not {precision}{hint}")
    return target
