"""The last pass: what only the exporter needed leaves the graph."""

from __future__ import annotations

import onnx_ir as ir


class Cleanup(ir.passes.InPlacePass):
    """Ensures that nothing is computed twice, every initializer is read, and no node carries metadata."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        shared = ir.passes.common.CommonSubexpressionEliminationPass()(model).modified
        removed = ir.passes.common.RemoveUnusedNodesPass()(model).modified
        for node in graph:
            node.metadata_props.clear()
        return ir.passes.PassResult(model, modified=shared or removed)

    def ensures(self, model: ir.Model) -> None:
        unread = [name for name, value in model.graph.initializers.items() if not value.uses()]
        if unread:
            raise ir.passes.PostconditionError(f"initializer {unread[0]} is never read")
