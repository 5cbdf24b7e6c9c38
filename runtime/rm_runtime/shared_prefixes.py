"""Which rows of a request begin alike, and which of them to compute as continuations of one prefix."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Rows = Sequence[NDArray[np.int64]]

LEAST_SAVED_SHARE = 0.05
"""A prefix is shared where that spares at least this part of a batch's tokens. Time falls as the tokens do, from the
first percent on (benchmarks/shared_prefix.py); less is not worth the second graph's memory."""
LEAST_SAVED_TOKENS = 64
"""And at least so many tokens, for the same reason."""


def new_ids(rows: Rows) -> list[int]:
    """Ids of each row that the row before it does not begin with: about what it costs where prefixes are shared."""
    before = itertools.chain([rows[0][:0]] if rows else [], rows)
    return [len(row) - _common(previous, row) for previous, row in zip(before, rows, strict=False)]


@dataclass(frozen=True)
class PrefixBatch:
    """Rows that share their first `prefix` ids, at least one, computed together."""

    prefix: int
    rows: tuple[int, ...]

    def tokens(self, lengths: Sequence[int]) -> int:
        """Ids this batch computes, padding included. lengths: of all rows of the request."""
        return self.prefix + len(self.rows) * max(1, max(lengths[row] for row in self.rows) - self.prefix)


def plan_shared_prefixes(rows: Rows, batch_tokens: int, max_padding: float) -> tuple[list[PrefixBatch], list[int]]:
    """(batches that share a prefix, longest first; row numbers that are better computed in full, ascending).

    Every row is in one of them. Groups are chosen to spare the most tokens: rows with a long prefix in common, or more
    rows with a shorter one, whichever is more. A batch holds at most `batch_tokens` ids, padding included; it ends
    where the next row would bring its padding above both the prefix's length and `max_padding` of the ids behind it.
    """
    lengths = [len(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda row: np.asarray(rows[row], ">i8").tobytes())
    root = _groups(order, [_common(rows[a], rows[b]) for a, b in pairwise(order)])
    best: dict[int, int] = {}
    plans: dict[int, list[PrefixBatch]] = {}
    for group in _children_first(root):
        of_children = sum(best[id(child)] for child in group.children)
        plan = _filled(group, order, lengths, batch_tokens, max_padding)
        saved = _saved(plan, lengths)
        if saved >= of_children and saved > 0:
            plans[id(group)] = plan
        best[id(group)] = max(saved, of_children)
    batches: list[PrefixBatch] = []
    undecided = [root]
    while undecided:
        group = undecided.pop()
        if id(group) in plans:
            batches += plans[id(group)]
        else:
            undecided += group.children
    batches.sort(key=lambda batch: -batch.tokens(lengths))
    shared = {row for batch in batches for row in batch.rows}
    return batches, [row for row in range(len(rows)) if row not in shared]


@dataclass
class _Group:
    """Rows order[left:right], all that share `prefix` ids; children: those among them that share more."""

    prefix: int
    left: int
    right: int
    children: list[_Group] = field(default_factory=list)


def _groups(order: Sequence[int], common: Sequence[int]) -> _Group:
    """The tree of groups over sorted rows; common: ids that neighbours share.

    Source: Abouelhoda, Kurtz and Ohlebusch, Replacing suffix trees with enhanced suffix arrays, 2004 (lcp-intervals).
    """
    root = _Group(0, 0, len(order))
    path = [root]
    for place, length in enumerate([*common, 0]):
        left, closed = place, None
        while length < path[-1].prefix:
            closed = path.pop()
            closed.right, left = place + 1, closed.left
            if length <= path[-1].prefix:
                path[-1].children.append(closed)
                closed = None
        if length > path[-1].prefix:
            path.append(_Group(length, left, left, [closed] if closed else []))
    return root


def _children_first(root: _Group) -> list[_Group]:
    parents_first, waiting = [], [root]
    while waiting:
        group = waiting.pop()
        parents_first.append(group)
        waiting += group.children
    return parents_first[::-1]


def _filled(
    group: _Group, order: Sequence[int], lengths: Sequence[int], batch_tokens: int, max_padding: float
) -> list[PrefixBatch]:
    """The group's batches, longest rows first, without those that spare too little."""
    if not group.prefix:
        return []
    parts: list[list[int]] = []
    width = held = 0
    for row in sorted(order[group.left : group.right], key=lambda row: -lengths[row]):
        own = lengths[row] - group.prefix
        area = (len(parts[-1]) + 1) * width if parts else 0
        # a further batch computes the prefix once more, so that much padding is cheaper
        padding_pays = area - held - own <= max(group.prefix, max_padding * area)
        if parts and group.prefix + area <= batch_tokens and padding_pays:
            parts[-1].append(row)
            held += own
        else:
            parts.append([row])
            width, held = max(1, own), own
    batches = [PrefixBatch(group.prefix, tuple(part)) for part in parts]
    return [batch for batch in batches if _pays(batch, lengths)]


def _saved(batches: Sequence[PrefixBatch], lengths: Sequence[int]) -> int:
    return sum(sum(lengths[row] for row in batch.rows) - batch.tokens(lengths) for batch in batches)


def _pays(batch: PrefixBatch, lengths: Sequence[int]) -> bool:
    saved = _saved([batch], lengths)
    return saved >= max(LEAST_SAVED_TOKENS, LEAST_SAVED_SHARE * sum(lengths[row] for row in batch.rows))


def _common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """How many ids two rows have in common at their beginning."""
    shorter = min(len(one), len(other))
    differs = one[:shorter] != other[:shorter]
    return int(differs.argmax()) if differs.any() else shorter
