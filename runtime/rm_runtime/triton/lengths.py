"""Which length a row is padded to before Triton queues it: its dynamic batcher joins requests of equal shape only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rm_runtime.batching import pad_rows

SHORTEST = 16
_BUCKETS_AN_OCTAVE = 8


def bucket_length(length: int, longest: int) -> int:
    """The smallest bucket that holds `length` ids, at most `longest`, which no prompt exceeds.

    Buckets are 16, 32, 48, ... 128, then eight between each power of two and the next: rows of up to 4,096 ids have 48
    shapes, and at most an eighth of a row that is longer than 128 ids is padding.
    """
    step = max(SHORTEST, (1 << max(0, length - 1).bit_length()) // (2 * _BUCKETS_AN_OCTAVE))
    return max(length, min(longest, max(1, -(-length // step)) * step))


def padded_to_bucket(
    rows: Sequence[NDArray[np.int64]], pad_token_id: int, longest: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of ids -> input_ids and attention_mask, int64 [batch, sequence], padded to the bucket of the longest one."""
    ids, mask = pad_rows(rows, pad_token_id)
    more = ((0, 0), (0, bucket_length(ids.shape[1], longest) - ids.shape[1]))
    return np.pad(ids, more, constant_values=pad_token_id), np.pad(mask, more)
