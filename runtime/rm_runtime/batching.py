"""Many rows of ids -> few well-filled batches -> one array per output, in the rows' own order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_runtime.engines.protocol import Arrays, Engine, RowRunner
from rm_runtime.engines.shared_prefix import SharedPrefixEngine
from rm_runtime.shared_prefixes import plan_shared_prefixes

DEFAULT_BATCH_TOKENS = 4096
"""Ids, padding included, that one batch may hold. Decoders hardly depend on it (benchmarks/batch_tokens.py), and
best-of-n behind a long prompt fits whole. rm_runtime.token_budget lowers it for encoders and where memory is short."""

MAX_PADDING = 0.1
"""Share of a batch's ids that may be padding: work that an engine does for nothing."""

FREE_PADDING = 64
"""Ids of padding a batch may hold whatever its size: a further run, which reads all weights again, costs more."""

RunRows = Callable[[Sequence[NDArray[np.int64]]], Arrays]


def plan_batches(
    lengths: Sequence[int], batch_tokens: int = DEFAULT_BATCH_TOKENS, max_padding: float = MAX_PADDING
) -> list[list[int]]:
    """Row numbers grouped into batches: rows sorted by length, longest first, each batch within the token budget.

    A row longer than the budget is a batch of its own. A batch ends where the next row would bring its padding above
    both `max_padding` of its ids and FREE_PADDING ids. Longest first, so that memory peaks at once and not at the end.
    """
    batches: list[list[int]] = []
    width = held = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        area = (len(batches[-1]) + 1) * width if batches else 0
        padding = area - held - lengths[row]
        if batches and area <= batch_tokens and padding <= max(FREE_PADDING, max_padding * area):
            batches[-1].append(row)
            held += lengths[row]
        else:
            batches.append([row])
            width = held = lengths[row]
    return batches


def run_once_each(rows: Sequence[NDArray[np.int64]], run: RunRows) -> Arrays:
    """Equal rows run once, so that they tie: in two batches they might differ by rounding."""
    unique = {row.tobytes(): row for row in rows}
    outputs = run(list(unique.values()))
    places = {key: place for place, key in enumerate(unique)}
    chosen = [places[row.tobytes()] for row in rows]
    return {name: array[chosen] for name, array in outputs.items()}


def pad_rows(rows: Sequence[NDArray[np.int64]], pad_token_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of ids -> input_ids and attention_mask, int64 [batch, sequence], padded on the right."""
    width = max(1, max((len(row) for row in rows), default=1))
    ids = np.full((len(rows), width), pad_token_id, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return ids, mask


def run_rows(
    engine: Engine,
    rows: Sequence[NDArray[np.int64]],
    pad_token_id: int,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_batch: Callable[[Mapping[str, NDArray[Any]]], None] | None = None,
) -> Arrays:
    """Score rows of ids: outputs by name, row i of each belonging to rows[i]; rows that cannot be scored are NaN.

    A SharedPrefixEngine computes what rows have in common once, where that saves work. A RowRunner is given the rows as
    they are. on_batch: told what the engine is about to run.
    """
    if isinstance(engine, RowRunner):
        return engine.run_rows(rows)
    shares = isinstance(engine, SharedPrefixEngine)
    shared, full = plan_shared_prefixes(rows, batch_tokens, MAX_PADDING) if shares else ([], list(range(len(rows))))
    batches = [(batch.prefix, list(batch.rows)) for batch in shared]
    batches += [(0, [full[i] for i in batch]) for batch in plan_batches([len(rows[row]) for row in full], batch_tokens)]
    results: Arrays = {}
    for prefix, batch in batches:
        ids, mask = pad_rows([rows[row][prefix:] for row in batch], pad_token_id)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if prefix:
            inputs["prefix_ids"] = np.asarray(rows[batch[0]][None, :prefix], np.int64)
        if on_batch:
            on_batch(inputs)
        for name, array in engine.run(inputs).items():
            if name not in results:
                results[name] = np.empty((len(rows), *array.shape[1:]), array.dtype)
            results[name][batch] = array
    return results
