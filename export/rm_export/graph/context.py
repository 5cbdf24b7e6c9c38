"""How tokens lie in a decoder's matrices, and who attends to whom.

Layers see tokens as rows of [batch, sequence, size] and never ask what a row is. `Context` lays out every row in full.
`SharedContext` lays out a common prefix and all its continuations as one row [1, prefix + batch * sequence, size]: each
matrix product runs once over all of them, and attention once over the prefix and once over the continuations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from rm_export.graph.module import Op, Value
from rm_export.graph.positions import gather_positions
from rm_export.graph.rows import Continuations, Rows

Rotary = Callable[[Op, Value], tuple[Value, Value]]
"""positions [tokens] -> cos, sin, each [tokens, head_dim / 2]."""

Attend = Callable[[Op, Value, Value, Value, Value | None], Value]
"""query, key, value [batch, sequence, heads * head_dim], visible [queries, keys] bool (None: causal) -> as query."""


class Layout(Protocol):
    """What all layers of one graph share."""

    input_ids: Value
    """The ids to embed, in the layout's order."""

    def rotated(self, op: Op, x: Value, heads: int) -> Value:
        """x [..., heads * head_dim] with rotary positions, the same shape."""

    def attended(
        self, op: Op, attend: Attend, query: Value, key: Value, value: Value, window: int | None, masked: bool
    ) -> Value:
        """Attention of every row to itself, shaped as query. masked: `attend` needs a mask even where it is causal."""

    def states_at(self, op: Op, x: Value, at: Value) -> Value:
        """x as the layers leave it, at [batch, k] positions in the whole rows -> [batch, k, size]."""


def layout_of(op: Op, rows: Rows, rotary: Rotary) -> Layout:
    """The layout of those rows."""
    return Context(op, rows, rotary) if rows.continuations is None else SharedContext(op, rows.continuations, rotary)


class Context:
    """Every row in full, [batch, sequence, size]."""

    def __init__(self, op: Op, rows: Rows, rotary: Rotary) -> None:
        self.input_ids = rows.input_ids
        shape = op.Shape(rows.input_ids)
        steps = op.Range(0, op.Squeeze(op.Slice(shape, [1], [2]), [0]), 1)
        self._positions = op.Expand(op.Unsqueeze(steps, [0]), shape)
        self._cos, self._sin = rotary(op, steps)
        self._masks = Masks(steps, steps)

    def rotated(self, op: Op, x: Value, heads: int) -> Value:
        return op.RotaryEmbedding(x, self._cos, self._sin, self._positions, num_heads=heads)

    def attended(
        self, op: Op, attend: Attend, query: Value, key: Value, value: Value, window: int | None, masked: bool
    ) -> Value:
        return attend(op, query, key, value, self._masks.visible(op, window, masked))

    def states_at(self, op: Op, x: Value, at: Value) -> Value:
        return gather_positions(op, x, at)


class SharedContext:
    """A prefix and its continuations in one row: prefix tokens, then the continuations one after the other.

    Continuations attend to the prefix's keys and values followed by their own, under a boolean mask: as fast as
    Attention's past_key (docs/performance.md), and the same for soft-capped attention and windows.
    """

    def __init__(self, op: Op, rows: Continuations, rotary: Rotary) -> None:
        self._prefix = op.Slice(op.Shape(rows.prefix_ids), [1], [2])
        self._shape = op.Shape(rows.input_ids)
        self._batch, self._length = op.Slice(self._shape, [0], [1]), op.Slice(self._shape, [1], [2])
        self._sizes = op.Concat(self._prefix, op.Mul(self._batch, self._length), axis=0)
        self.input_ids = op.Concat(rows.prefix_ids, op.Reshape(rows.input_ids, [1, -1]), axis=1)
        prefix = op.Squeeze(self._prefix, [0])
        whole = op.Range(0, op.Add(prefix, op.Squeeze(self._length, [0])), 1)
        before, after = op.Slice(whole, [0], self._prefix), op.Slice(whole, self._prefix, [2**31])
        cos, sin = rotary(op, op.Concat(before, op.Reshape(op.Expand(after, self._shape), [-1]), axis=0))
        # a row of cos and sin for every token: ONNX Runtime refuses more tokens than a table addressed by position has
        self._cos, self._sin = op.Unsqueeze(cos, [0]), op.Unsqueeze(sin, [0])
        self._prefix_masks, self._row_masks = Masks(before, before), Masks(after, whole)

    def rotated(self, op: Op, x: Value, heads: int) -> Value:
        return op.RotaryEmbedding(x, self._cos, self._sin, num_heads=heads)

    def attended(
        self, op: Op, attend: Attend, query: Value, key: Value, value: Value, window: int | None, masked: bool
    ) -> Value:
        (query_before, query_after), (key_before, key_after), (value_before, value_after) = (
            self._parts(op, x) for x in (query, key, value)
        )
        visible = self._prefix_masks.visible(op, window, masked)
        in_prefix = attend(op, query_before, key_before, value_before, visible)
        keys, values = self._joined(op, key_before, key_after), self._joined(op, value_before, value_after)
        in_rows = attend(op, query_after, keys, values, self._row_masks.visible(op, window, masked=True))
        return op.Concat(in_prefix, op.Reshape(in_rows, [1, -1, _size(query)]), axis=1)

    def states_at(self, op: Op, x: Value, at: Value) -> Value:
        row = op.Unsqueeze(op.Range(0, op.Squeeze(self._batch, [0]), 1), [1])
        in_row = op.Add(at, op.Mul(row, self._length))
        return op.Squeeze(op.Gather(x, op.Where(op.Less(at, self._prefix), at, in_row), axis=1), [0])

    def _parts(self, op: Op, x: Value) -> tuple[Value, Value]:
        """x [1, tokens, size] -> of the prefix [1, prefix, size], of the continuations [batch, sequence, size]."""
        prefix, rows = op.Split(x, self._sizes, axis=1, _outputs=2)
        return prefix, op.Reshape(rows, op.Concat(self._shape, [_size(x)], axis=0))

    def _joined(self, op: Op, prefix: Value, rows: Value) -> Value:
        """[1, prefix, size], [batch, sequence, size] -> [batch, prefix + sequence, size]."""
        return op.Concat(op.Expand(prefix, op.Concat(self._batch, [1, 1], axis=0)), rows, axis=1)


class Masks:
    """Which keys queries see, by window; each made once. Positions are those in the whole row."""

    def __init__(self, queries: Value, keys: Value) -> None:
        self._queries, self._keys = queries, keys
        self._visible: dict[int | None, Value] = {}

    def visible(self, op: Op, window: int | None, masked: bool) -> Value | None:
        """[queries, keys] bool: query i sees key j iff j <= i, and i - j < window if there is one.

        None where causal attention says the same and `masked` asks for no mask.
        """
        if window is None and not masked:
            return None
        if window not in self._visible:
            distance = op.Sub(op.Unsqueeze(self._queries, [1]), op.Unsqueeze(self._keys, [0]))
            causal = op.GreaterOrEqual(distance, 0)
            self._visible[window] = causal if window is None else op.And(causal, op.Less(distance, window))
        return self._visible[window]


def _size(x: Value) -> int:
    assert x.shape is not None
    size = x.shape[-1]
    assert isinstance(size, int)
    return size
