"""The queue of one engine: rows of many requests -> turns of the engine -> each request's outputs.

One thread runs the engine. Whenever it is free it takes a turn: a share of each waiting client's rows after the other,
round and round, until the turn has work enough; a client's shares are of its requests, one after the other, round and
round. So neither a request of a thousand rows nor a thousand requests of one client delay another's single row by more
than the turn in work and a share of each other client. All rows of a turn are planned as one call, which finds prefixes
that they have in common: within a request, whose rows stay together as far as a share goes, and across requests.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from rm_runtime.engines.protocol import Arrays
from rm_runtime.errors import EngineError, RewardModelError
from rm_runtime.serving.errors import NotReadyError, QueueFullError, TooLargeError
from rm_runtime.serving.fair_queue import FairQueue
from rm_runtime.serving.job import Job, Rows, lengths
from rm_runtime.serving.limits import Limits
from rm_runtime.serving.pace import Pace

TURN_SECONDS = 1.0
"""A turn that is expected to take so long is closed: those who come in the meantime wait for its end. Longer turns have
more rows to sort by length and to find prefixes in."""

Turn = list[tuple[Job, int]]
"""(job, row of it) in the order they were taken."""


class Batcher:
    """Runs rows of many requests. Every method may be called from any thread.

    run: rows -> outputs, row i of each belonging to rows[i]. turn_tokens: ids that close a turn. share_tokens: ids of
    one request that are taken together; a longer row is a share of its own. waited: told the seconds from a job's
    arrival to its first row's turn. seconds_per_token: of the engine, until its turns tell; 0 = not known. work_of:
    rows of a request -> the ids of each that count in turns, shares and time, as prefixes may be computed once.
    """

    def __init__(
        self,
        run: Callable[[Rows], Arrays],
        turn_tokens: int,
        share_tokens: int,
        limits: Limits,
        waited: Callable[[float], None],
        seconds_per_token: float = 0.0,
        work_of: Callable[[Rows], Sequence[int]] = lengths,
    ) -> None:
        self._run = run
        self._turn_tokens = turn_tokens
        self._share_tokens = share_tokens
        self._limits = limits
        self._waited = waited
        self._jobs: FairQueue[Job] = FairQueue()
        self._changed = threading.Condition()
        self._closed = False
        self._work_of = work_of
        self._pace = Pace(seconds_per_token)
        self.waiting_rows = 0
        self.waiting_tokens = 0
        self._waiting_work = 0
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, rows: Rows, client: str = "", admitted: bool = False) -> Job:
        """Put rows of a client's request into the queue. admitted: earlier ones were let in, so these are, too.

        Raises TooLargeError if they do not fit the empty queue, QueueFullError if they do not fit now, NotReadyError
        after `close`.
        """
        job = Job(rows, self._work_of(rows), client, time.monotonic(), missing=len(rows))
        tokens, limits = job.tokens_left(), self._limits
        if tokens > limits.max_queue_tokens or len(rows) > limits.max_queue_rows:
            raise TooLargeError(
                f"the request has {tokens} tokens in {len(rows)} rows; {limits.max_queue_tokens} tokens and "
                f"{limits.max_queue_rows} rows fit the queue; send less at once"
            )
        with self._changed:
            if self._closed:
                raise NotReadyError("the server is stopping")
            if not self._jobs.has(client):
                limits = limits.of_newcomers()
            full = self.waiting_rows + len(rows) > limits.max_queue_rows
            full |= self.waiting_tokens + tokens > limits.max_queue_tokens
            if not admitted and (full or self.expected_wait() > limits.max_wait_seconds):
                waiting = f"{self.waiting_rows} rows are waiting, for about {self.expected_wait():.0f} seconds"
                raise QueueFullError(f"{waiting}; try again later", retry_after=max(1, math.ceil(self.expected_wait())))
            self._jobs.append(job)
            self._count(len(rows), tokens, job.work_left())
            self._changed.notify()
        return job

    def expected_wait(self) -> float:
        """Seconds until what waits now is done, at the engine's speed of late."""
        return self._pace.left() + self._pace.expected(self._waiting_work)

    def withdraw(self, job: Job, reason: Exception) -> None:
        """Take a job's rows out of the queue and fail it, unless it has its outputs. Rows in the engine run on."""
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                self._count(job.taken - len(job.rows), -job.tokens_left(), -job.work_left())
            if not job.future.done():
                job.future.set_exception(reason)

    def close(self, timeout: float | None = None) -> None:
        """Let nothing more in, run what waits, and stop. timeout: seconds to wait for that."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)

    def _work(self) -> None:
        while turn := self._next_turn():
            work = sum(job.work[row] for job, row in turn)
            self._pace.begin(work)
            self._run_turn(turn)
            self._pace.end(work)

    def _next_turn(self) -> Turn:
        """What the engine does next, as soon as there is something; empty when closed and all is done."""
        turn: Turn = []
        work = 0
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            while self._jobs and not self._fills_turn(work):
                job = self._jobs.pop()
                if not job.taken:
                    self._waited(time.monotonic() - job.arrived)
                share = job.next_share(self._share_tokens)
                turn += [(job, row) for row in share]
                work += sum(job.work[row] for row in share)
                job.taken = share.stop
                if job.taken < len(job.rows):
                    self._jobs.append(job)
            self._count(-len(turn), -sum(len(job.rows[row]) for job, row in turn), -work)
        return turn

    def _fills_turn(self, work: int) -> bool:
        return work >= self._turn_tokens or (work > 0 and self._pace.expected(work) >= TURN_SECONDS)

    def _run_turn(self, turn: Turn) -> None:
        """Run a turn and give out its outputs; where the engine fails, each job alone, so that one fails alone."""
        try:
            outputs = self._run([job.rows[row] for job, row in turn])
        except Exception as error:  # whatever it is: the thread has to live for the requests that come
            jobs = list(dict.fromkeys(job for job, _ in turn))
            if len(jobs) == 1:
                known = isinstance(error, RewardModelError)
                self.withdraw(jobs[0], error if known else EngineError(f"the engine failed: {type(error).__name__}"))
                return
            for alone in jobs:
                self._run_turn([(job, row) for job, row in turn if job is alone])
            return
        with self._changed:
            for place, (job, row) in enumerate(turn):
                for name, array in outputs.items():
                    of_job = job.outputs.setdefault(name, np.empty((len(job.rows), *array.shape[1:]), array.dtype))
                    of_job[row] = array[place]
                job.missing -= 1
                if not job.missing and not job.future.done():
                    job.future.set_result(job.outputs)

    def _count(self, rows: int, tokens: int, work: int) -> None:
        self.waiting_rows += rows
        self.waiting_tokens += tokens
        self._waiting_work += work
