"""What each engine family can run, one frozen record each. Passes and checks ask the record, never a name."""

from __future__ import annotations

from dataclasses import dataclass

from rm_export.errors import ExportError


@dataclass(frozen=True)
class Target:
    """A dialect of ONNX.

    precisions: what a graph for this target may be lowered to. engines: which runtimes read it.
    """

    name: str
    precisions: frozenset[str]
    engines: tuple[str, ...]


TARGETS = {
    target.name: target
    for target in (
        Target("cpu", frozenset({"fp32", "fp16", "int8", "w8", "w4"}), ("onnxruntime", "openvino")),
        Target("cuda", frozenset({"fp32", "fp16", "bf16"}), ("onnxruntime",)),
        Target("tensorrt", frozenset({"fp32", "fp16", "bf16"}), ("tensorrt",)),
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
