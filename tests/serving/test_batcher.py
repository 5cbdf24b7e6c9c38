"""The queue: order, bounds, cancellation, failures, end."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rm_runtime.errors import EngineError
from rm_runtime.serving import batcher as queue_module
from rm_runtime.serving.batcher import Batcher
from rm_runtime.serving.errors import ClientGoneError, DeadlineError, NotReadyError, QueueFullError, TooLargeError
from rm_runtime.serving.limits import Limits
from rm_runtime.serving.ticket import QueuedRows, Ticket
from rm_runtime.shared_prefixes import new_ids
from served import PATIENCE, eventually

Rows = Sequence[NDArray[np.int64]]


class Engine:
    """Scores a row by the sum of its ids, once it is let; remembers its turns. A row that holds 13 is its end."""

    def __init__(self) -> None:
        self.turns: list[list[int]] = []
        self.let = threading.Event()

    def run(self, rows: Rows) -> dict[str, NDArray[Any]]:
        self.turns.append([int(row[0]) for row in rows])
        assert self.let.wait(PATIENCE)
        if any(13 in row for row in rows):
            raise EngineError("out of memory")
        return {
            "score": np.array([row.sum() for row in rows], np.float32),
            "many": np.array([[*row[:1]] * 3 for row in rows]),
        }


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def batcher(engine: Engine) -> Iterator[Batcher]:
    """Turns of four ids, shares of one; ten rows and forty ids may wait. A first row of a 0 holds its engine up."""
    made = Batcher(engine.run, 4, 1, Limits(max_queue_rows=10, max_queue_tokens=40), lambda seconds: None)
    made.submit(rows(0))
    eventually(lambda: engine.turns)
    yield made
    engine.let.set()
    made.close(PATIENCE)


def rows(*first: int, length: int = 1) -> Rows:
    return [np.full(length, number, np.int64) for number in first]


def test_a_request_of_one_row_waits_for_one_turn_of_a_bulk_request(engine: Engine, batcher: Batcher) -> None:
    bulk = batcher.submit(rows(1, 2, 3, 4, 5, 6, 7, 8))
    one = batcher.submit(rows(100))
    engine.let.set()
    assert one.future.result(PATIENCE)["score"].tolist() == [100]
    assert bulk.future.result(PATIENCE)["score"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert engine.turns == [[0], [1, 2, 100, 3], [4, 5, 6, 7], [8]]


def test_requests_take_turns_in_every_turn(engine: Engine, batcher: Batcher) -> None:
    jobs = [batcher.submit(rows(*numbers)) for numbers in ((1, 2, 3), (11, 12), (21, 22, 23))]
    engine.let.set()
    for job in jobs:
        job.future.result(PATIENCE)
    assert engine.turns[1:] == [[1, 2, 11, 3], [21, 12, 22, 23]]


def test_rows_of_a_request_stay_together_as_far_as_a_share_goes(engine: Engine) -> None:
    made = Batcher(engine.run, 6, 4, Limits(), lambda seconds: None)
    made.submit(rows(0))
    eventually(lambda: engine.turns)
    jobs = [made.submit(rows(1, 2, 3, 4, 5, length=2)), made.submit(rows(11, 12)), made.submit(rows(21))]
    engine.let.set()
    for job in jobs:
        job.future.result(PATIENCE)
    made.close(PATIENCE)
    assert engine.turns == [[0], [1, 2, 3, 4], [11, 12, 5, 21]]


def test_what_rows_have_in_common_counts_once_in_turns_and_in_the_expected_wait(engine: Engine) -> None:
    made = Batcher(engine.run, 8, 8, Limits(), lambda seconds: None, seconds_per_token=1.0, work_of=new_ids)
    made.submit(rows(0))
    eventually(lambda: engine.turns)
    alike = [np.array([1, *[5] * 5, last], np.int64) for last in (6, 7, 8)]
    job = made.submit(alike)
    assert made.waiting_tokens == 21
    assert 9 <= made.expected_wait() <= 10, "seven ids, one, one, and the turn in work"
    engine.let.set()
    assert job.future.result(PATIENCE)["score"].tolist() == [32, 33, 34]
    made.close(PATIENCE)
    assert [len(turn) for turn in engine.turns] == [1, 2, 1]


def test_a_row_longer_than_a_turn_is_the_last_of_one(engine: Engine, batcher: Batcher) -> None:
    jobs = [batcher.submit(rows(1)), batcher.submit(rows(2, length=9)), batcher.submit(rows(3))]
    engine.let.set()
    for job in jobs:
        job.future.result(PATIENCE)
    assert engine.turns[1:] == [[1, 2], [3]]


def test_a_slow_engine_takes_one_share_a_turn(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, batcher: Batcher
) -> None:
    monkeypatch.setattr(queue_module, "TURN_SECONDS", 0.0)
    jobs = [batcher.submit(rows(1)), batcher.submit(rows(2)), batcher.submit(rows(3))]
    engine.let.set()
    for job in jobs:
        job.future.result(PATIENCE)
    assert engine.turns[1:] == [[1], [2], [3]]


def test_a_full_queue_refuses_and_says_when_to_come_back(batcher: Batcher) -> None:
    batcher.submit(rows(*range(9)))
    with pytest.raises(QueueFullError) as full:
        batcher.submit(rows(1, 2))
    assert full.value.retry_after == 1
    batcher.submit(rows(1))
    with pytest.raises(QueueFullError):
        batcher.submit(rows(1))


def test_what_waits_too_long_refuses_and_says_for_how_long(engine: Engine) -> None:
    made = Batcher(engine.run, 4, 4, Limits(max_wait_seconds=10), lambda seconds: None, seconds_per_token=1.0)
    made.submit(rows(0, length=3))
    made.submit(rows(1, length=8))
    with pytest.raises(QueueFullError, match=r"1[01] seconds") as full:
        made.submit(rows(2))
    assert full.value.retry_after in (10, 11)
    engine.let.set()
    eventually(lambda: made.expected_wait() == 0)
    assert made.submit(rows(3)).future.result(PATIENCE)["score"].tolist() == [3], (
        "it has learnt that the engine is fast"
    )
    made.close(PATIENCE)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=40), st.integers(1, 30))
def test_no_request_is_let_in_behind_more_than_it_may_wait_for(lengths: list[int], max_wait: int) -> None:
    engine = Engine()
    made = Batcher(engine.run, 1, 1, Limits(max_wait_seconds=max_wait), lambda seconds: None, seconds_per_token=1.0)
    made.submit(rows(0))
    eventually(lambda: engine.turns)
    waiting, accepted = 0, []
    for length in lengths:
        if waiting > max_wait:  # and a second at most for the turn in work
            with pytest.raises(QueueFullError) as full:
                made.submit(rows(length, length=length))
            assert full.value.retry_after in (waiting, waiting + 1)
        elif waiting < max_wait:
            accepted.append(made.submit(rows(length, length=length)))
            waiting += length
    engine.let.set()
    for job in accepted:
        job.future.result(PATIENCE)
    made.close(PATIENCE)


def test_ids_that_wait_are_bounded_too(batcher: Batcher) -> None:
    batcher.submit(rows(1, length=39))
    with pytest.raises(QueueFullError):
        batcher.submit(rows(1, length=2))


@pytest.mark.parametrize("too_much", [rows(*range(11)), rows(1, length=41)])
def test_what_does_not_fit_the_empty_queue_is_too_large(batcher: Batcher, too_much: Rows) -> None:
    with pytest.raises(TooLargeError):
        batcher.submit(too_much)


def test_a_later_round_of_a_request_is_let_into_a_full_queue(engine: Engine, batcher: Batcher) -> None:
    ticket = Ticket(PATIENCE)
    queued = QueuedRows("model", batcher, ticket)
    first = threading.Thread(target=lambda: queued.run_rows(rows(1)))
    first.start()
    eventually(lambda: batcher.waiting_rows == 1)
    engine.let.set()
    first.join(PATIENCE)
    engine.let.clear()
    batcher.submit(rows(0))
    eventually(lambda: batcher.waiting_rows == 0)
    batcher.submit(rows(*range(10)))
    second: list[Any] = []
    thread = threading.Thread(target=lambda: second.append(queued.run_rows(rows(5))))
    thread.start()
    eventually(lambda: batcher.waiting_rows == 11)
    engine.let.set()
    thread.join(PATIENCE)
    assert second[0]["score"].tolist() == [5]


def test_a_withdrawn_request_leaves_the_queue(engine: Engine, batcher: Batcher) -> None:
    gone, stays = batcher.submit(rows(1, 2, 3)), batcher.submit(rows(4))
    batcher.withdraw(gone, ClientGoneError("gone"))
    assert (batcher.waiting_rows, batcher.waiting_tokens) == (1, 1)
    engine.let.set()
    assert stays.future.result(PATIENCE)["score"].tolist() == [4]
    assert engine.turns == [[0], [4]]
    with pytest.raises(ClientGoneError):
        gone.future.result(0)


def test_a_request_that_ends_before_it_asks_is_never_queued(batcher: Batcher) -> None:
    ticket = Ticket(PATIENCE)
    ticket.end(ClientGoneError("gone"))
    with pytest.raises(ClientGoneError):
        QueuedRows("model", batcher, ticket).run_rows(rows(1))
    assert batcher.waiting_rows == 0


def test_a_request_past_its_deadline_leaves_the_queue(batcher: Batcher) -> None:
    with pytest.raises(DeadlineError, match=r"0\.01 seconds"):
        QueuedRows("model", batcher, Ticket(0.01)).run_rows(rows(1))
    assert batcher.waiting_rows == 0


def test_the_rows_of_one_request_that_break_the_engine_do_not_fail_its_neighbours(
    engine: Engine, batcher: Batcher
) -> None:
    bad, good = batcher.submit(rows(1, 13)), batcher.submit(rows(2))
    engine.let.set()
    assert good.future.result(PATIENCE)["score"].tolist() == [2]
    with pytest.raises(EngineError, match="out of memory"):
        bad.future.result(PATIENCE)
    assert batcher.submit(rows(5)).future.result(PATIENCE)["score"].tolist() == [5], "the queue lives on"


def test_equal_rows_of_a_request_run_once(engine: Engine, batcher: Batcher) -> None:
    engine.let.set()
    outputs = QueuedRows("model", batcher, Ticket(PATIENCE)).run_rows(rows(7, 8, 7))
    assert outputs["score"].tolist() == [7, 8, 7]
    assert engine.turns[1:] == [[7, 8]]


def test_close_runs_what_waits_and_lets_nothing_in(engine: Engine, batcher: Batcher) -> None:
    waiting = batcher.submit(rows(1, 2, 3, 4, 5))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    eventually(lambda: refused(batcher))
    engine.let.set()
    assert waiting.future.result(PATIENCE)["score"].tolist() == [1, 2, 3, 4, 5]
    closing.join(PATIENCE)
    assert not closing.is_alive()


def refused(batcher: Batcher) -> bool:
    """Whether the queue is closed; a row that it takes is withdrawn."""
    try:
        batcher.withdraw(batcher.submit(rows(9)), ClientGoneError("gone"))
    except NotReadyError:
        return True
    return False


def test_a_clients_hundred_requests_are_one_place_in_the_round() -> None:
    turns: list[list[int]] = []
    may_run = threading.Semaphore(0)

    def run(of_turn: Rows) -> dict[str, NDArray[Any]]:
        turns.append([int(row[0]) for row in of_turn])
        assert may_run.acquire(timeout=PATIENCE)
        return {"score": np.array([row[0] for row in of_turn])}

    batcher = Batcher(run, 4, 1, Limits(max_queue_rows=20_000, max_wait_seconds=1e9), lambda seconds: None)
    bulk = [batcher.submit(rows(*[number] * 100), "bulk") for number in range(1, 101)]
    for turn in range(1, 50):
        eventually(lambda turn=turn: len(turns) == turn)
        one = batcher.submit(rows(1000 + turn), "interactive")
        may_run.release()
        eventually(lambda turn=turn: len(turns) == turn + 1)
        assert turns[turn].index(1000 + turn) <= 1, "it is in the next turn, behind one row at most"
        may_run.release()
        assert one.future.result(PATIENCE)["score"].tolist() == [1000 + turn]
        eventually(lambda turn=turn: len(turns) == turn + 2)
        turns.pop()
    for job in bulk:
        batcher.withdraw(job, ClientGoneError("gone"))
    may_run.release()
    batcher.close(PATIENCE)
    assert (batcher.waiting_rows, batcher.waiting_tokens) == (0, 0)


def test_clients_share_a_turn_and_a_clients_requests_share_its_part(engine: Engine, batcher: Batcher) -> None:
    jobs = [
        batcher.submit(rows(*numbers), client)
        for client, numbers in (("a", (1, 2)), ("a", (11, 12)), ("b", (21, 22)), ("a", (31,)))
    ]
    engine.let.set()
    for job in jobs:
        job.future.result(PATIENCE)
    assert engine.turns[1:] == [[1, 21, 2, 22], [11, 12, 31]]


def test_a_client_with_nothing_in_work_is_let_into_a_queue_that_another_filled(
    engine: Engine, batcher: Batcher
) -> None:
    batcher.submit(rows(*range(10)), "bulk")
    with pytest.raises(QueueFullError):
        batcher.submit(rows(1), "bulk")
    one = batcher.submit(rows(100), "interactive")
    with pytest.raises(QueueFullError):
        batcher.submit(rows(101, 102), "interactive")
    engine.let.set()
    assert one.future.result(PATIENCE)["score"].tolist() == [100]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.lists(st.integers(1, 6), min_size=1, max_size=8)), min_size=1, max_size=12
    ),
    st.integers(1, 12),
)
def test_no_client_is_ahead_of_another_that_waits_by_more_than_a_row(
    requests: list[tuple[str, list[int]]], turn: int
) -> None:
    engine = Engine()
    batcher = Batcher(engine.run, turn, 1, Limits(), lambda seconds: None)
    batcher.submit(rows(0))
    eventually(lambda: engine.turns)
    jobs, owner = [], {}
    for number, (client, lengths) in enumerate(requests, 1):
        owner[100 * number] = client
        jobs.append(batcher.submit([np.full(length, 100 * number, np.int64) for length in lengths], client))
    engine.let.set()
    for job in jobs:
        job.future.result(PATIENCE)
    batcher.close(PATIENCE)
    left = Counter[str]()
    for client, lengths in requests:
        left[client] += len(lengths)
    taken = Counter[str]()
    for row in (row for turn_rows in engine.turns[1:] for row in turn_rows):
        taken[owner[row]] += 1
        left[owner[row]] -= 1
        waiting = [client for client in left if left[client]]
        assert all(taken[owner[row]] - taken[client] <= 1 for client in waiting)
    assert not any(left.values()), "nobody starved"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=5),
    st.integers(1, 12),
    st.integers(1, 9),
)
def test_every_request_gets_its_own_outputs_and_the_queue_is_empty_after(
    requests: list[list[int]], turn: int, share: int
) -> None:
    engine = Engine()
    engine.let.set()
    batcher = Batcher(engine.run, turn, share, Limits(), lambda seconds: None)
    jobs = [
        batcher.submit([np.full(length, 100 * number + place, np.int64) for place, length in enumerate(lengths)])
        for number, lengths in enumerate(requests)
    ]
    for number, (job, lengths) in enumerate(zip(jobs, requests, strict=True)):
        outputs = job.future.result(PATIENCE)
        assert outputs["score"].tolist() == [length * (100 * number + place) for place, length in enumerate(lengths)]
        assert outputs["many"].tolist() == [[100 * number + place] * 3 for place in range(len(lengths))]
    batcher.close(PATIENCE)
    assert (batcher.waiting_rows, batcher.waiting_tokens) == (0, 0)
