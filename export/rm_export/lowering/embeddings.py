"""Embedding tables as int8 with a float32 scale for each row: rows are looked up as integers, then scaled.

Written as Gather, Cast and Mul, not as DequantizeLinear -> Gather: that would widen the whole table in every run.
TensorRT reads integers next to a DequantizeLinear only, so its record says that it takes no int8 tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from rm_calibration.fidelity import FidelityCheck
from rm_calibration.symmetric import scales_of
from rm_calibration.weights import dequantise, quantise_weight
from rm_export.graph.module import PRECISION_MARK
from rm_export.lowering.constants import add_constant
from rm_export.tensors import Array, BlockMapped, StreamedTensor, to_float32

_FLOAT, _INT8 = ir.DataType.FLOAT, ir.DataType.INT8


class QuantiseEmbeddings(ir.passes.InPlacePass):
    """Requires a float32 graph. Ensures that rows of embedding tables are looked up as int8, and widened to float32.

    An embedding table is a float matrix that nothing but Gathers over its rows read: a head tied to it has rows of
    its own in the graph, and they stay float.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        tables = _tables(model.graph)
        for table in tables:
            _quantise(model.graph, table)
        return ir.passes.PassResult(model, modified=bool(tables))

    def ensures(self, model: ir.Model) -> None:
        tables = _tables(model.graph)
        if tables:
            raise ir.passes.PostconditionError(f"{tables[0].name} is still looked up in float")


def _tables(graph: ir.Graph) -> list[ir.Value]:
    return [
        value
        for value in graph.initializers.values()
        if isinstance(value.const_value, StreamedTensor)
        and value.dtype == _FLOAT
        and len(value.const_value.dims) == 2
        and value.const_value.dims[1] > 1
        and value.uses()
        and all(_looks_up_rows(use.node, use.idx) for use in value.uses())
    ]


def _looks_up_rows(node: ir.Node, place: int) -> bool:
    axis = node.attributes.get("axis")
    return node.op_type == "Gather" and place == 0 and (axis is None or axis.as_int() == 0)


def _quantise(graph: ir.Graph, table: ir.Value) -> None:
    source = table.const_value
    assert isinstance(source, StreamedTensor)
    name, (rows, size) = str(table.name), source.dims
    values = add_constant(graph, f"{name}_int8", BlockMapped(source, _integers_of(name), _INT8, (rows, size), name))
    scales = add_constant(graph, f"{name}_scale", BlockMapped(source, _scales, _FLOAT, (rows, 1), name))
    for use in list(table.uses()):
        lookup, found = use.node, use.node.outputs[0]
        picked = _node("Gather", [values, lookup.inputs[1]], {"axis": 0}, f"{lookup.name}/int8", _INT8, found.shape)
        widened = _node("Cast", [picked.outputs[0]], {"to": _FLOAT}, f"{lookup.name}/Cast", _FLOAT, found.shape)
        scale = _node("Gather", [scales, lookup.inputs[1]], {"axis": 0}, f"{lookup.name}/scale", _FLOAT, None)
        scale.metadata_props[PRECISION_MARK] = "float32"
        factors = [widened.outputs[0], scale.outputs[0]]
        product = _node("Mul", factors, {}, f"{lookup.name}/Mul", _FLOAT, found.shape)
        graph.insert_before(lookup, [picked, widened, scale, product])
        product.outputs[0].name = found.name
        found.replace_all_uses_with(product.outputs[0], replace_graph_outputs=True)
        graph.remove(lookup, safe=True)
    del graph.initializers[name]


def _node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, int],
    name: str,
    dtype: ir.DataType,
    shape: ir.Shape | None,
) -> ir.Node:
    node = ir.node(op_type, inputs, attributes, name=name)
    output = node.outputs[0]
    output.name, output.dtype, output.shape = f"{name}_output", dtype, shape
    return node


def _scales(pieces: Iterator[Array]) -> Iterator[Array]:
    """Rows [n, size] -> scales [n, 1]; no clip: a row is too short to gain from one."""
    for rows in pieces:
        yield scales_of(np.abs(to_float32(rows)).max(axis=1, keepdims=True))


def _integers_of(name: str) -> Callable[[Iterator[Array]], Iterator[Array]]:
    """What makes the rows' integers, block after block, all compared with what they came from."""

    def integers(pieces: Iterator[Array]) -> Iterator[Array]:
        check = FidelityCheck(name)
        for rows in pieces:
            wide = to_float32(rows)
            packed = quantise_weight(wide.T, clip="none", tensor=name)
            check.add(wide.T, dequantise(packed))
            yield packed.values.T
        check.result()

    return integers
