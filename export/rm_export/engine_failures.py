"""What TensorRT says when it fails, in one line and in the source model's terms."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rm_export.errors import ExportError

_PARSER = re.compile(r"In node \d+ with name: (\S*) and operator: (\w+)[^:]*: (\w+): (.*)", re.DOTALL)
_DRIVER = re.compile(
    r"CUDA (?:initialization failure|driver).*|.*insufficient driver.*|.*status == CUDA_SUCCESS.*", re.IGNORECASE
)
_MEMORY = re.compile(r"out ?of ?memory|OOM|insufficient memory", re.IGNORECASE)
_LINE = 300


def build_failure(package: str, version: str, graph: str, messages: Sequence[str]) -> ExportError:
    """messages: what TensorRT logged as errors, first one first."""
    what = f"{package} {version}"
    for message in messages:
        found = _PARSER.search(message)
        if found:
            node, operator, kind, reason = found.groups()
            asked = _one_line(reason).rpartition(' && "')[2].strip('"')
            return ExportError(f"{what} does not take {source_name(node)} ({operator}) of {graph}: {kind}: {asked}")
    text = " ".join(messages)
    if _DRIVER.search(text):
        return ExportError(
            f"{what} found no usable NVIDIA driver; build the engine on a machine with a GPU: {_cut(text)}"
        )
    if _MEMORY.search(text):
        return ExportError(
            f"{what} ran out of memory building {graph}; pass smaller --shapes, or --weight-streaming: {_cut(text)}"
        )
    return ExportError(f"{what} could not build {graph}: {_cut(text) or 'it gave no reason'}")


def source_name(node: str) -> str:
    """A node of our graph by the module that made it: "model/layers.0/mlp/MatMul_node_9" -> "model.layers.0.mlp"."""
    parts = node.split("/")
    return ".".join(parts[:-1]) or node


def _cut(text: str) -> str:
    line = _one_line(text)
    return line if len(line) <= _LINE else f"{line[:_LINE]}..."


def _one_line(text: str) -> str:
    return " ".join(text.split())
