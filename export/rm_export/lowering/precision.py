"""fp32 -> fp16 or bf16: matrix products, attention and embeddings go low, everything that adds up stays float32.

The residual stream, norms, softmax, rotary tables and heads are float32 in every precision; only what feeds a matrix
product is rounded. The number of casts is the same as with a low residual stream, and nothing can overflow in it.
Around int8 products: QuantizeLinear reads what there is, float32 from a norm, and DequantizeLinear gives the type of
its product at once, with no Cast between that would keep an engine from fusing the three.
"""

from __future__ import annotations

import onnx_ir as ir

from rm_export.graph.module import PRECISION_MARK
from rm_export.lowering.scales import inexact_scale
from rm_export.tensors import StreamedTensor, cast

FLOAT = ir.DataType.FLOAT

_LOW_OPS = frozenset({"MatMul", "Gemm", "Attention", "RotaryEmbedding"})
"""Computed in low precision unless marked float32."""

_FOLLOWING_OPS = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Neg",
        "Sigmoid",
        "Tanh",
        "Relu",
        "Gelu",
        "Swish",
        "Reshape",
        "Transpose",
        "Slice",
        "Concat",
        "Split",
        "Expand",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "Gather",
        "GatherND",
        "GatherElements",
        "Pad",
        "Flatten",
        "Tile",
        "QuantizeLinear",
    ]
)
"""Computed in low precision where every computed float input already is; else in float32."""


class LowerPrecision(ir.passes.InPlacePass):
    """Requires a float32 graph whose values all have types, and scales that the low type holds exactly.

    Ensures float32 outputs, float32 marked nodes, and that products read a DequantizeLinear without a Cast.
    """

    def __init__(self, dtype: ir.DataType) -> None:
        super().__init__()
        self.low = dtype

    def requires(self, model: ir.Model) -> None:
        for node in model.graph:
            for value in node.outputs:
                if value.dtype is None:
                    raise ir.passes.PreconditionError(f"{value.name} of {node.op_type} has no type")
                if _is_float(value) and value.dtype != FLOAT:
                    raise ir.passes.PreconditionError(f"{value.name} of {node.op_type} is {value.dtype}, not float32")
        inexact = inexact_scale(model.graph, self.low)
        if inexact is not None:
            raise ir.passes.PreconditionError(f"scale {inexact.name} is no number of {self.low}")

    def ensures(self, model: ir.Model) -> None:
        for output in model.graph.outputs:
            if output.dtype != FLOAT:
                raise ir.passes.PostconditionError(f"output {output.name} is {output.dtype}")
        for node in model.graph:
            floats = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None and _is_float(value)}
            if _is_marked(node) and floats - {FLOAT}:
                raise ir.passes.PostconditionError(f"{node.name} is marked float32 and is not")
            if len(floats) > 1 and node.op_type != "Cast":
                raise ir.passes.PostconditionError(f"{node.name} mixes {floats}")
            if node.op_type == "DequantizeLinear" and any(use.node.op_type == "Cast" for use in node.outputs[0].uses()):
                raise ir.passes.PostconditionError(f"a Cast separates {node.name} from its product")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        for node in list(graph):
            precision = self._precision_of(node)
            for place, value in enumerate(node.inputs):
                if value is not None and _is_float(value) and value.dtype != precision:
                    node.replace_input_with(place, self._as(graph, node, value, precision))
            if node.op_type == "Cast" or precision == FLOAT:
                continue
            for output in node.outputs:
                if _is_float(output):
                    output.dtype = precision
                    if _reads_table(node):
                        _widen(graph, node, output)
        return ir.passes.PassResult(model, modified=True)

    def _precision_of(self, node: ir.Node) -> ir.DataType:
        if _is_marked(node):
            return FLOAT
        if node.op_type == "DequantizeLinear":
            return FLOAT if any(_is_marked(use.node) for use in node.outputs[0].uses()) else self.low
        if node.op_type in _LOW_OPS or _reads_table(node):
            return self.low
        computed = [
            value for value in node.inputs if value is not None and _is_float(value) and not _is_constant(value)
        ]
        if node.op_type in _FOLLOWING_OPS and computed and all(value.dtype == self.low for value in computed):
            return self.low
        return FLOAT

    def _as(self, graph: ir.Graph, node: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        key = (value, dtype)
        if key not in self._casts:
            if _is_constant(value):
                self._casts[key] = _narrowed(graph, value, dtype)
            else:
                source = value.producer()  # the Cast belongs to its layer, which split_stages reads off the name
                name = value.name if source is None else source.name
                cast_node = ir.node("Cast", [value], {"to": dtype}, name=f"{name}/Cast_{dtype.short_name()}")
                output = cast_node.outputs[0]
                output.name, output.dtype, output.shape = (
                    f"{value.name}_{dtype.short_name()}",
                    dtype,
                    value.shape,
                )
                graph.insert_before(node, cast_node)
                self._casts[key] = output
        return self._casts[key]


def _is_float(value: ir.Value) -> bool:
    """Of the types that are computed in: float8 is only ever stored, like integers."""
    return value.dtype is not None and value.dtype.is_floating_point() and value.dtype.bitwidth > 8


def _is_marked(node: ir.Node) -> bool:
    return node.metadata_props.get(PRECISION_MARK) == "float32"


def _is_constant(value: ir.Value) -> bool:
    return value.producer() is None and value.const_value is not None


def _reads_table(node: ir.Node) -> bool:
    """An embedding lookup: its table is stored low, its rows are widened at once."""
    table = node.inputs[0] if node.op_type == "Gather" else None
    return table is not None and _is_constant(table) and _is_float(table)


def _widen(graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
    widen = ir.node("Cast", [output], {"to": FLOAT}, name=f"{node.name}/Cast_f32")
    widened = widen.outputs[0]
    widened.name, widened.dtype, widened.shape = f"{output.name}_f32", FLOAT, output.shape
    output.replace_all_uses_with(widened)
    widen.replace_input_with(0, output)
    graph.insert_after(node, widen)


def _narrowed(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """The constant in another precision; under its own name if nothing else reads it, so that weights keep theirs."""
    tensor = value.const_value
    assert tensor is not None
    if isinstance(tensor, StreamedTensor):
        narrow: ir.TensorProtocol = cast(tensor, dtype)
    else:
        narrow = ir.Tensor(tensor.numpy().astype(dtype.numpy()), dtype=dtype)
    narrow.name = f"{value.name}_{dtype.short_name()}"
    copy = ir.Value(name=narrow.name, shape=value.shape, type=ir.TensorType(dtype), const_value=narrow)
    graph.register_initializer(copy)
    return copy
