"""What every graph module is made of: weights that know where they come from, and the float32 mark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import onnx_ir as ir
from onnxscript import nn

from rm_export.errors import CheckpointError
from rm_export.tensors import StreamedTensor, cast, transpose

PRECISION_MARK = "rm_export.precision"
"""Node metadata key; the value "float32" keeps a node in float32 whatever precision the graph is lowered to."""

Op = Any
"""onnxscript's OpBuilder: op.MatMul(a, b) appends a node and returns its output value."""

Value = ir.Value


class Module(nn.Module):
    """Base of all modules; attribute names are the checkpoint's tensor names."""

    def __call__(self, op: Op, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(op, *args, **kwargs)


class Float32Module(Module):
    """A module whose whole inside stays float32: norms, softmax, heads."""

    def __call__(self, op: Op, *args: Any, **kwargs: Any) -> Any:
        graph = op.builder.graph
        before = graph.num_nodes()
        result = super().__call__(op, *args, **kwargs)
        for node in islice(reversed(graph), graph.num_nodes() - before):
            node.metadata_props[PRECISION_MARK] = "float32"
        return result


Transform = Callable[..., StreamedTensor]
"""Makes a parameter's tensor out of the checkpoint tensors it is read from."""


class Weight(nn.Parameter):
    """A float parameter read from the checkpoint.

    dims: its shape as the graph uses it. sources: checkpoint tensor names, relative to the module that owns it; by
    default its own name. transform: checkpoint tensors -> parameter, by default unchanged. The result is cast
    to float32; the precision pass narrows it later.
    """

    def __init__(
        self,
        shape: Sequence[int],
        transform: Transform | None = None,
        sources: Sequence[str] | None = None,
    ) -> None:
        super().__init__(list(shape))
        self.dims = tuple(shape)
        self.transform = transform
        self.sources = sources


class Linear(Module):
    """y = x @ weight^T + bias, with the checkpoint's [out, in] weight stored transposed as [in, out]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = Weight([in_features, out_features], transform=transpose)
        self.bias = Weight([out_features]) if bias else None

    def forward(self, op: Op, x: Value) -> Value:
        """x [..., in_features] -> [..., out_features]."""
        y = op.MatMul(x, self.weight)
        return y if self.bias is None else op.Add(y, self.bias)


class Float32Linear(Float32Module, Linear):
    """A Linear of a head: computed in float32 in every precision."""


def bind_weights(
    module: nn.Module, tensors: Mapping[str, StreamedTensor], unused: Callable[[str], bool], where: str
) -> None:
    """Give every Weight its lazy tensor, after the graph was built. No byte of a weight is read here.

    tensors: the checkpoint's, by name. unused: names the family does not need (an LM head, buffers). where: what to
    call the checkpoint in errors. Raises CheckpointError for a missing tensor, a wrong shape, a non-float dtype, or
    a tensor that the family neither uses nor knows.
    """
    used: set[str] = set()
    for name, parameter in module.named_parameters():
        if not isinstance(parameter, Weight):
            continue
        prefix = name.rpartition(".")[0]
        own = [name] if parameter.sources is None else [join_name(prefix, source) for source in parameter.sources]
        missing = [source for source in own if source not in tensors]
        if missing:
            raise CheckpointError(f"{where} lacks the tensor {missing[0]!r}; is this the right family for it?")
        sources = [tensors[source] for source in own]
        for source in sources:
            if not source.dtype.is_floating_point():
                raise CheckpointError(
                    f"{where}: tensor {source.name!r} is {source.dtype}; quantised checkpoints are "
                    "not supported, pass the float checkpoint"
                )
        bound = _transformed(parameter, sources, where)
        if bound.dims != parameter.dims:
            raise CheckpointError(
                f"{where}: tensor {own[0]!r} of shape {list(sources[0].dims)} does not fit the {list(parameter.dims)}"
                " that config.json asks for"
            )
        parameter.const_value = bound
        used.update(own)
    unknown = sorted(name for name in set(tensors) - used if not unused(name))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise CheckpointError(
            f"{where} holds a tensor that this family does not know: {unknown[0]!r} {list(tensors[unknown[0]].dims)}"
            f"{more}; its scores would ignore it, so it is refused"
        )


def _transformed(parameter: Weight, sources: Sequence[StreamedTensor], where: str) -> StreamedTensor:
    if parameter.transform is None:
        (bound,) = sources
    else:
        try:
            bound = parameter.transform(*sources)
        except ValueError as error:
            raise CheckpointError(f"{where}: tensor {sources[0].name!r} {list(sources[0].dims)}: {error}") from None
    bound = cast(bound, ir.DataType.FLOAT)
    bound.name = parameter.name
    return bound


def join_name(prefix: str, name: str) -> str:
    """Checkpoint name of `name` seen from the module path `prefix`; a leading "/" starts at the root."""
    if name.startswith("/"):
        return name[1:]
    return f"{prefix}.{name}" if prefix else name
