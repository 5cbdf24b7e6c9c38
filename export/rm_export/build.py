"""A plan's module written as an onnx-ir model, weights bound lazily."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript import GraphBuilder

from rm_export.families.plan import Plan
from rm_export.graph.module import bind_weights
from rm_export.graph.rows import Rows, joined_rows

OPSET = 23
IR_VERSION = 11


def build_model(plan: Plan, where: str, shared_prefix: bool = False) -> ir.Model:
    """The float32 graph of the contract: input_ids, attention_mask -> plan.outputs. where: the checkpoint's name.

    shared_prefix: the rows are what follows prefix_ids [1, prefix], an input more; for causal plans only.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name=where)
    builder = GraphBuilder(graph)
    rows_shape = ["batch", "sequence"]
    prefix_ids = builder.input("prefix_ids", ir.DataType.INT64, [1, "prefix"]) if shared_prefix else None
    input_ids = builder.input("input_ids", ir.DataType.INT64, rows_shape)
    attention_mask = builder.input("attention_mask", ir.DataType.INT64, rows_shape)
    rows = Rows(input_ids, attention_mask)
    if prefix_ids is not None:
        rows = joined_rows(builder.op, prefix_ids, input_ids, attention_mask)
    outputs: dict[str, Any] = plan.module(builder.op, rows)
    for name, shape in plan.outputs.items():
        value = outputs[name]
        value.type = ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape(shape)
        builder.add_output(value, name)
    bind_weights(plan.module, plan.tensors, plan.unused, where)
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="rm-export")
