"""One client's request on its way through a queue: its deadline, and whether anyone still waits for it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from rm_runtime.batching import run_once_each
from rm_runtime.engines.protocol import Arrays
from rm_runtime.serving.batcher import Batcher
from rm_runtime.serving.errors import DeadlineError, ServingError
from rm_runtime.serving.job import Job, Rows


class Ticket:
    """Waits for a request's rows, which may come in several rounds (a tournament's).

    seconds: from now until the request has to be answered. client: whose it is; clients take turns.
    """

    def __init__(self, seconds: float, client: str = "") -> None:
        self.client = client
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._end: ServingError | None = None
        self._waiting: tuple[Batcher, Job] | None = None
        self._admitted = False
        self.rows = 0
        self.body_bytes = 0

    def outputs_of(self, batcher: Batcher, rows: Rows) -> Arrays:
        """The outputs of rows, once the queue had its turn at them.

        Raises what `Batcher.submit` raises, EngineError, DeadlineError, and what `end` was given.
        """
        if not rows:
            return {}
        with self._lock:
            if self._end:
                raise self._end
            job = batcher.submit(rows, self.client, self._admitted)
            self._waiting = batcher, job
            self._admitted = True
            self.rows += len(rows)
        try:
            return job.future.result(max(0.0, self._deadline - time.monotonic()))
        except TimeoutError:
            batcher.withdraw(job, DeadlineError(f"not answered within {self._seconds:g} seconds"))
            return job.future.result()

    def end(self, reason: ServingError) -> None:
        """Nobody waits any longer: the rows leave the queue, and no more come."""
        with self._lock:
            self._end = reason
            if self._waiting:
                batcher, job = self._waiting
                batcher.withdraw(job, reason)


@dataclass(frozen=True)
class QueuedRows:
    """In the place of a model's engine: rows that the model wants scored wait their turn in a queue."""

    name: str
    batcher: Batcher
    ticket: Ticket

    def run_rows(self, rows: Rows) -> Arrays:
        """As rm_runtime.batching.run_rows, equal rows once."""
        return run_once_each(rows, lambda unique: self.ticket.outputs_of(self.batcher, unique))
