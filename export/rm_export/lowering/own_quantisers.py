"""Products that read one int8 activation get a QuantizeLinear and DequantizeLinear each, where the target wants that.

ONNX Runtime 1.31 makes an integer product only of a QuantizeLinear with one reader: with a shared one it widens the
weights in every run and multiplies in float. It also merges equal nodes, so the copies carry different values of
`axis`, which means nothing beside a scalar scale.
"""

from __future__ import annotations

import onnx_ir as ir


class OwnQuantisers(ir.passes.InPlacePass):
    """Requires activations quantised per tensor. Ensures that every activation's DequantizeLinear has one reader."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for widen in list(model.graph):
            quantise = _quantiser_of(widen)
            uses = widen.outputs[0].uses() if quantise is not None else []
            if quantise is None or len(uses) < 2:
                continue
            for place, use in enumerate(uses):
                own = _copied(quantise, quantise.inputs[0], place, use.node)
                own_widen = _copied(widen, own.outputs[0], place, use.node)
                model.graph.insert_before(use.node, [own, own_widen])
                use.node.replace_input_with(use.idx, own_widen.outputs[0])
            model.graph.remove([widen, quantise], safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        for node in model.graph:
            if _quantiser_of(node) is not None and len(node.outputs[0].uses()) != 1:
                raise ir.passes.PostconditionError(f"{node.name} has several readers")


def _quantiser_of(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear before a DequantizeLinear."""
    source = node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] is not None else None
    return source if source is not None and source.op_type == "QuantizeLinear" else None


def _copied(node: ir.Node, value: ir.Value | None, place: int, reader: ir.Node) -> ir.Node:
    output = node.outputs[0]
    assert output.shape is not None
    assert output.dtype is not None
    copy = ir.node(
        node.op_type,
        [value, *node.inputs[1:]],
        {"axis": place % len(output.shape)},
        name=f"{reader.name}/input/{node.op_type}",
    )
    made = copy.outputs[0]
    made.name, made.dtype, made.shape = f"{output.name}.{place}", output.dtype, output.shape
    return copy
