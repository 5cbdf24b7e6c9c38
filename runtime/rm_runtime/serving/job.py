"""What waits in a queue: the rows of one request, and which of them the engine had."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rm_runtime.engines.protocol import Arrays

Rows = Sequence[NDArray[np.int64]]


@dataclass(eq=False)
class Job:
    """Rows that a client's request waits for. taken: what the engine was given; missing: what has no outputs.

    work: ids of each row that the engine has to compute.
    """

    rows: Rows
    work: Sequence[int]
    client: str
    arrived: float
    taken: int = 0
    missing: int = 0
    outputs: Arrays = field(default_factory=dict)
    future: Future[Arrays] = field(default_factory=Future)

    def tokens_left(self) -> int:
        return sum(map(len, self.rows[self.taken :]))

    def work_left(self) -> int:
        return sum(self.work[self.taken :])

    def next_share(self, work: int) -> range:
        """The rows that come next: as many as have that much work together, at least one."""
        end, held = self.taken + 1, self.work[self.taken]
        while end < len(self.rows) and held + self.work[end] <= work:
            held += self.work[end]
            end += 1
        return range(self.taken, end)


def lengths(rows: Rows) -> list[int]:
    """Ids of each row."""
    return [len(row) for row in rows]
