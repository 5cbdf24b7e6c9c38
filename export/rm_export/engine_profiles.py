"""Optimisation profiles: which shapes a compiled engine takes, a bucket of lengths each.

One profile per bucket beats one for everything: TensorRT chooses kernels for a profile's usual shape and sets memory
aside for its largest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rm_export.errors import ExportError
from rm_runtime.batching import DEFAULT_BATCH_TOKENS

FIRST_LENGTH = 128
GROWTH = 4
"""From one bucket's length to the next: padding within a bucket costs no more than its usual shape."""

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]
"""Input -> its smallest, usual and largest shape."""


@dataclass(frozen=True)
class Bucket:
    """Rows of up to `length` ids, at most `batch` of them at once."""

    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"


def default_buckets(max_length: int, batch_tokens: int = DEFAULT_BATCH_TOKENS) -> tuple[Bucket, ...]:
    """Lengths 128, 512, 2,048, ... up to the prompt's limit, each with the batch that fills the token budget."""
    lengths = [FIRST_LENGTH]
    while lengths[-1] < max_length:
        lengths.append(min(lengths[-1] * GROWTH, max_length))
    return tuple(Bucket(max(1, batch_tokens // length), length) for length in lengths)


def parse_buckets(text: str, max_length: int) -> tuple[Bucket, ...]:
    """ "32x128,8x512" -> buckets, shortest first. Raises ExportError for another form or a greater length."""
    buckets = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([1-9]\d*)x([1-9]\d*)\s*", part)
        if not found:
            raise ExportError(f"shapes {part.strip()!r}: write BATCHxLENGTH, as in 32x128,8x512")
        buckets.append(Bucket(int(found[1]), int(found[2])))
        if buckets[-1].length > max_length:
            raise ExportError(f"shape {buckets[-1]} is longer than the bundle's prompts, {max_length} ids at most")
    return tuple(sorted(buckets, key=lambda bucket: (bucket.length, bucket.batch)))


def profiles_for(role: str, buckets: Sequence[Bucket], max_length: int) -> tuple[Profile, ...]:
    """One profile a bucket. role: "plain", or "prefix", whose rows of a bucket stand behind a prefix of any length."""
    profiles = []
    for bucket in buckets:
        largest = (bucket.batch, bucket.length)
        profile = dict.fromkeys(("input_ids", "attention_mask"), ((1, 1), largest, largest))
        if role == "prefix":
            profile["prefix_ids"] = ((1, 1), (1, max(1, max_length // 2)), (1, max_length))
        profiles.append(profile)
    return tuple(profiles)
