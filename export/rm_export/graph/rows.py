"""The rows of tokens a graph scores, in full or as continuations of one prefix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from rm_export.graph.module import Op, Value


@dataclass(frozen=True)
class Continuations:
    """Rows that begin alike. prefix_ids [1, prefix]: at least one token; input_ids [batch, sequence]: what follows."""

    prefix_ids: Value
    input_ids: Value


@dataclass(frozen=True)
class Rows:
    """input_ids, attention_mask int64 [batch, sequence], right-padded: the whole rows, where heads look for positions.

    continuations: the same tokens with the common prefix once, if the graph shares one.
    """

    input_ids: Value
    attention_mask: Value
    continuations: Continuations | None = None


def joined_rows(op: Op, prefix_ids: Value, input_ids: Value, attention_mask: Value) -> Rows:
    """prefix_ids [1, prefix], input_ids and attention_mask [batch, sequence] of its continuations -> their Rows."""
    batch = op.Slice(op.Shape(input_ids), [0], [1])
    spread = op.Concat(batch, op.Slice(op.Shape(prefix_ids), [1], [2]), axis=0)
    attended = op.ConstantOfShape(spread, value=ir.tensor(np.array([1], np.int64)))
    return Rows(
        op.Concat(op.Expand(prefix_ids, spread), input_ids, axis=1),
        op.Concat(attended, attention_mask, axis=1),
        Continuations(prefix_ids, input_ids),
    )
