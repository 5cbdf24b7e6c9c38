"""Turns among clients, and among each client's jobs, whatever is appended, popped and removed in between."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rm_runtime.serving.fair_queue import FairQueue


@dataclass(eq=False)
class Job:
    client: str
    taken: int = 0


class Turns(RuleBasedStateMachine):
    """Against the rule itself, in its most literal form: whoever waits for the longest is next, of clients and of a
    client's jobs that have begun or have not, by turns."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[Job] = FairQueue()
        self.jobs: list[Job] = []
        self.clients: list[str] = []
        self.begun_is_next: dict[str, bool] = {}

    @rule(client=st.sampled_from("abcd"))
    def append(self, client: str) -> None:
        self.put(Job(client))

    def put(self, job: Job) -> None:
        self.queue.append(job)
        self.jobs.append(job)
        if job.client not in self.clients:
            self.clients.append(job.client)
            self.begun_is_next[job.client] = False

    @precondition(lambda self: self.jobs)
    @rule(again=st.booleans())
    def pop(self, again: bool) -> None:
        client = self.clients.pop(0)
        waiting = [job for job in self.jobs if job.client == client]
        wanted = [job for job in waiting if bool(job.taken) == self.begun_is_next[client]]
        longest = (wanted or waiting)[0]
        assert self.queue.pop() is longest
        self.begun_is_next[client] = not longest.taken
        self.jobs.remove(longest)
        if any(job.client == client for job in self.jobs):
            self.clients.append(client)
        if again:
            longest.taken += 1
            self.put(longest)

    @precondition(lambda self: self.jobs)
    @rule(place=st.integers(0, 99))
    def remove(self, place: int) -> None:
        job = self.jobs.pop(place % len(self.jobs))
        self.queue.remove(job)
        assert job not in self.queue
        if not any(other.client == job.client for other in self.jobs):
            self.clients.remove(job.client)

    @invariant()
    def it_holds_what_was_put_into_it(self) -> None:
        assert bool(self.queue) == bool(self.jobs)
        assert all(job in self.queue for job in self.jobs)
        assert {client for client in "abcd" if self.queue.has(client)} == set(self.clients)


Turns.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTurns = Turns.TestCase


@pytest.mark.parametrize("clients", [1, 3])
@pytest.mark.parametrize("turns", [1, 2, 7])
def test_a_job_of_many_turns_is_done_however_many_jobs_keep_coming(clients: int, turns: int) -> None:
    queue: FairQueue[Job] = FairQueue()
    for number in range(50):
        queue.append(Job(str(number % clients)))
    large, waited = Job("0"), 0
    queue.append(large)
    while queue.pop() is not large:
        queue.append(Job(str(waited % clients)))
        waited += 1
    assert waited <= 50 + clients, "those that came before it"
    for taken in range(1, turns):
        large.taken = taken
        queue.append(large)
        popped = 1
        while queue.pop() is not large:
            queue.append(Job(str(popped % clients)))
            popped += 1
        assert popped <= 2 * clients


def test_what_is_not_there_cannot_be_removed() -> None:
    queue: FairQueue[Job] = FairQueue()
    with pytest.raises(KeyError):
        queue.remove(Job("a"))
