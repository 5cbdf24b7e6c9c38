"""DeBERTa's scores by relative distance: c2p and p2c, each query-key pair's picked out of those against all distances.

A pair's bucket depends on i - j only and is the same in every head, so the scores are laid out with the heads last and
one Gather picks all heads of a pair at once, a row of `heads` floats: an index of [query, key], not of [batch, heads,
query, key], and S^2 copies of 64 bytes in place of 16 S^2 of 4. Only the buckets that the length can reach are
computed: 255 of 512 at 128 tokens. benchmarks/deberta_attention.py measures this form against the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from rm_export.graph.module import Float32Module, Op, Value

if TYPE_CHECKING:
    from rm_export.graph.deberta_config import DebertaConfig

MASKED = -30000.0
"""Added to the scores of padded keys: softmax gives them exactly 0, and float16 can hold it."""


class Distances:
    """What all layers of one graph share.

    first, end: the buckets first .. end - 1 occur at this length; int64 [1] each. of_query, of_key: place of a pair's
    bucket among all scores of its query, or of its key; int32 [query, key]. key_mask: 0 or MASKED, [batch, 1, key, 1].
    """

    def __init__(self, op: Op, attention_mask: Value, config: DebertaConfig) -> None:
        """attention_mask: int64 [batch, sequence]."""
        buckets = config.distance_table()
        reach = len(buckets) // 2
        table = op.initializer(ir.tensor(buckets), name="distance_buckets")
        length = op.Slice(op.Shape(attention_mask), [1], [2])
        farthest = op.Min(op.Sub(length, [1]), [reach])
        self.first = op.Gather(table, op.Sub([reach], farthest), axis=0)
        self.end = op.Add(op.Gather(table, op.Add(farthest, [reach]), axis=0), [1])
        place = op.Range(0, op.Squeeze(length, [0]), 1)
        queries, keys = op.Unsqueeze(place, [1]), op.Unsqueeze(place, [0])
        entry = op.Add(op.Max(op.Min(op.Sub(queries, keys), reach), -reach), reach)
        bucket = op.Sub(op.Gather(table, entry, axis=0), self.first)
        occurring = op.Sub(self.end, self.first)
        self.of_query, self.of_key = (
            op.Cast(op.Add(op.Mul(positions, occurring), bucket), to=ir.DataType.INT32) for positions in (queries, keys)
        )
        self.key_mask = op.Unsqueeze(op.Where(op.Equal(attention_mask, 0), MASKED, 0.0), [1, 3])


class DistanceScores(Float32Module):
    """Q PK[i - j]^T + PQ[i - j] K^T, and MASKED for padded keys: the additive mask of Attention."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(
        self,
        op: Op,
        query: Value,
        key: Value,
        position_key: Value | None,
        position_query: Value | None,
        distances: Distances,
    ) -> Value:
        """query, key [batch, heads, sequence, head_dim] -> [batch, heads, query, key].

        position_key, position_query: the projected distance embeddings, scaled, [heads, head_dim, bucket]; at least
        one. Padded keys are masked in p2c, mostly the smaller array: a masked key is masked at every distance.
        """
        c2p = None
        if position_key is not None:
            c2p = self._picked(op, against_buckets(op, query, position_key, distances), distances.of_query)
        if position_query is None:
            total = op.Add(c2p, distances.key_mask)
        else:
            against = op.Add(against_buckets(op, key, position_query, distances), distances.key_mask)
            p2c = self._picked(op, against, distances.of_key)
            total = p2c if c2p is None else op.Add(c2p, p2c)
        return op.Transpose(total, perm=[0, 3, 1, 2])

    def _picked(self, op: Op, scores: Value, index: Value) -> Value:
        """scores [batch, heads, sequence, bucket] -> [batch, query, key, heads]."""
        rows = op.Reshape(op.Transpose(scores, perm=[0, 2, 3, 1]), [0, -1, self.heads])
        return op.Gather(rows, index, axis=1)


def against_buckets(op: Op, x: Value, positions: Value, distances: Distances) -> Value:
    """x [batch, heads, sequence, head_dim] -> its scores against the buckets that occur, [..., sequence, bucket]."""
    return op.MatMul(x, op.Slice(positions, distances.first, distances.end, [2]))
