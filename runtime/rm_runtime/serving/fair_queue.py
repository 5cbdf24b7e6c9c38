"""Who is next: clients take turns, and each client's jobs take turns among themselves.

So a client with two hundred requests gets as much of the engine as one with a single request, while both want it. Of a
client's jobs, one that has not begun and one that has are next by turns, each kind in the order they came. So a job of
many turns does not hold up those that come after it, nor do those that keep coming hold it up: in one ring it would
wait before each of its turns for all that came in the meantime.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar


class OfClient(Protocol):
    """A job, whose it is, and how much of it was done; that does not change while it is queued."""

    @property
    def client(self) -> str: ...

    @property
    def taken(self) -> int: ...


J = TypeVar("J", bound=OfClient)


class FairQueue(Generic[J]):
    """A ring of clients, each with its jobs. A client that has no jobs is not in it; one that comes is the last.

    A job that is popped and has more to do is appended again: its client then had its turn, and so had it.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, _JobsOfOne[J]] = {}  # a dict remembers in which order its keys came

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def __contains__(self, job: J) -> bool:
        return job.client in self._jobs and job in self._jobs[job.client].row_of(job)

    def has(self, client: str) -> bool:
        """Whether it has jobs here."""
        return client in self._jobs

    def append(self, job: J) -> None:
        """The last of its kind and client."""
        self._jobs.setdefault(job.client, _JobsOfOne()).row_of(job).append(job)

    def pop(self) -> J:
        """The next job of the first client, which is the last client from now on."""
        client = next(iter(self._jobs))
        jobs = self._jobs.pop(client)
        job = jobs.pop()
        if jobs:
            self._jobs[client] = jobs
        return job

    def remove(self, job: J) -> None:
        """Raises KeyError or ValueError if it is not there."""
        jobs = self._jobs[job.client]
        jobs.row_of(job).remove(job)
        if not jobs:
            del self._jobs[job.client]


class _JobsOfOne(Generic[J]):
    """One client's."""

    def __init__(self) -> None:
        self._new: deque[J] = deque()
        self._begun: deque[J] = deque()
        self._begun_is_next = False

    def __bool__(self) -> bool:
        return bool(self._new or self._begun)

    def row_of(self, job: J) -> deque[J]:
        """Where it stands, or would."""
        return self._begun if job.taken else self._new

    def pop(self) -> J:
        begun = bool(self._begun) and (self._begun_is_next or not self._new)
        self._begun_is_next = not begun
        return (self._begun if begun else self._new).popleft()
