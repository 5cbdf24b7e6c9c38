"""Which positions a head reads, found inside the graph from input_ids and attention_mask.

Each rule has its name in semantics.md 0.1. All positions are int64; the companion `valid` values say for which rows
the rule holds, and `nan_unless` turns the others' scores into NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from rm_export.graph.module import Op, Value


def row_lengths(op: Op, attention_mask: Value) -> tuple[Value, Value]:
    """attention_mask [batch, sequence] -> lengths [batch] int64, valid [batch] bool.

    A row is valid if it holds at least one token and its mask is ones, then zeros (right-padded).
    """
    lengths = op.ReduceSum(attention_mask, [1], keepdims=0)
    expected = op.Less(_indices(op, attention_mask), op.Unsqueeze(lengths, [1]))
    differs = op.Xor(expected, op.Equal(attention_mask, 1))
    strays = op.ReduceSum(op.Cast(differs, to=ir.DataType.INT64), [1], keepdims=0)
    return lengths, op.And(op.Equal(strays, 0), op.Greater(lengths, 0))


def mask_sum(op: Op, lengths: Value) -> Value:
    """MASK-SUM: the last attended token. lengths [batch] -> [batch]."""
    return op.Sub(lengths, 1)


def first_pad(op: Op, input_ids: Value, lengths: Value, pad_token_id: int) -> Value:
    """FIRST-PAD: the token before the first pad id, whether it is padding or typed text; [batch].

    A row whose very first token is the pad id is read at its last token, as the reference reads it unpadded.
    """
    indices = _indices(op, input_ids)
    length = op.Unsqueeze(lengths, [1])
    is_pad = op.Or(op.Equal(input_ids, pad_token_id), op.GreaterOrEqual(indices, length))
    first = op.ReduceMin(op.Where(is_pad, indices, length), [1], keepdims=0)
    return op.Sub(op.Where(op.Equal(first, 0), lengths, first), 1)


def last_nonpad(op: Op, input_ids: Value, lengths: Value, pad_token_id: int) -> Value:
    """LAST-NONPAD: the last token whose id is not the pad id, 0 if there is none; [batch]."""
    indices = _indices(op, input_ids)
    is_text = op.And(op.Not(op.Equal(input_ids, pad_token_id)), op.Less(indices, op.Unsqueeze(lengths, [1])))
    return op.ReduceMax(op.Where(is_text, indices, 0), [1], keepdims=0)


def last_match(op: Op, input_ids: Value, lengths: Value, pattern: Sequence[int]) -> tuple[Value, Value]:
    """First token of the last occurrence of `pattern` inside each row -> position [batch], found [batch] bool."""
    tail = op.ConstantOfShape(
        op.Concat(op.Slice(op.Shape(input_ids), [0], [1]), [len(pattern) - 1], axis=0),
        value=ir.tensor(np.array([-1], np.int64)),
    )
    padded = op.Concat(input_ids, tail, axis=1)
    width = op.Slice(op.Shape(input_ids), [1], [2])
    matches: Value | None = None
    for offset, token in enumerate(pattern):
        shifted = op.Slice(padded, [offset], op.Add(width, [offset]), [1])
        equal = op.Equal(shifted, int(token))
        matches = equal if matches is None else op.And(matches, equal)
    indices = _indices(op, input_ids)
    inside = op.LessOrEqual(indices, op.Unsqueeze(op.Sub(lengths, len(pattern)), [1]))
    last = op.ReduceMax(op.Where(op.And(matches, inside), indices, -1), [1], keepdims=0)
    return op.Max(last, 0), op.GreaterOrEqual(last, 0)


def first_token(op: Op, input_ids: Value, lengths: Value, token: int) -> tuple[Value, Value]:
    """First position of `token` in each row -> position [batch], found [batch] bool."""
    indices = _indices(op, input_ids)
    length = op.Unsqueeze(lengths, [1])
    here = op.And(op.Equal(input_ids, token), op.Less(indices, length))
    first = op.ReduceMin(op.Where(here, indices, length), [1], keepdims=0)
    found = op.Less(first, lengths)
    return op.Where(found, first, 0), found


def gather_positions(op: Op, hidden: Value, at: Value) -> Value:
    """hidden [batch, sequence, size], at [batch, k] -> [batch, k, size]. Positions must be inside the row."""
    return op.GatherND(hidden, op.Unsqueeze(at, [2]), batch_dims=1)


def nan_unless(op: Op, valid: Value, value: Value, rank: int) -> Value:
    """value [batch, ...] of `rank` axes, with NaN in the rows where valid [batch] is false."""
    condition = op.Unsqueeze(valid, list(range(1, rank))) if rank > 1 else valid
    return op.Where(condition, value, math.nan)


def _indices(op: Op, rows: Value) -> Value:
    """rows [batch, sequence] -> [1, sequence]: 0, 1, 2, ..."""
    length = op.Squeeze(op.Slice(op.Shape(rows), [1], [2]), [0])
    return op.Unsqueeze(op.Range(0, length, 1), [0])
