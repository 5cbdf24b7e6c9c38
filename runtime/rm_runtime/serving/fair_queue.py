"""Who is next: clients take turns, and each client's jobs take turns among themselves.

So a client with two hundred requests gets as much of the engine as one with a single request, while both want it.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar


class OfClient(Protocol):
    """A job, and whose it is."""

    @property
    def client(self) -> str: ...


J = TypeVar("J", bound=OfClient)


class FairQueue(Generic[J]):
    """A ring of clients, each a ring of jobs. A client that has no jobs is not in it; one that comes is the last.

    A job that is popped and has more to do is appended again: its client then had its turn, and so had it.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, deque[J]] = {}  # a dict remembers in which order its keys came

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def __contains__(self, job: J) -> bool:
        return job in self._jobs.get(job.client, ())

    def has(self, client: str) -> bool:
        """Whether it has jobs here."""
        return client in self._jobs

    def append(self, job: J) -> None:
        """The last of its client's."""
        self._jobs.setdefault(job.client, deque()).append(job)

    def pop(self) -> J:
        """The first job of the first client, which is the last client from now on."""
        client = next(iter(self._jobs))
        jobs = self._jobs.pop(client)
        job = jobs.popleft()
        if jobs:
            self._jobs[client] = jobs
        return job

    def remove(self, job: J) -> None:
        """Raises KeyError or ValueError if it is not there."""
        jobs = self._jobs[job.client]
        jobs.remove(job)
        if not jobs:
            del self._jobs[job.client]
