"""The load tests' own client and checks: what they would miss, they would not measure."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fake_models import answer_of, pointwise
from http_load import closed_loop, open_loop, post
from serve_soak import Tally, growth, soak
from served import serving
from server_process import ServerProcess, Usage
from soak_cases import Case

MODEL = pointwise(lambda rendered: {"score": float(answer_of(rendered))})


def chat(answer: float) -> bytes:
    messages = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": str(answer)}]
    return post("/v1/score", json.dumps({"messages": messages}).encode())


def case(answer: float, expected: float) -> Case:
    return Case("/v1/score", chat(answer), (expected,), lambda reply: [reply["score"]])


def test_a_closed_loop_asks_every_request_once() -> None:
    with serving({"rm": MODEL}) as client:
        answers = closed_loop(client.port, [chat(number) for number in range(20)], 3)
    assert {answer.place: json.loads(answer.body)["score"] for answer in answers} == {n: float(n) for n in range(20)}


def test_an_open_loop_tells_refusals_and_when_to_come_back() -> None:
    with serving({"rm": MODEL}, max_queue_tokens=40) as client:
        answers = open_loop(client.port, [chat(1), post("/nowhere", b"{}")], 200.0, 0.2, seed=0)
    assert len(answers) == 40
    assert {answer.status for answer in answers if answer.place == 1} == {404}
    assert all((answer.retry_after is None) == (answer.status in (200, 404)) for answer in answers)


def test_what_nobody_answers_counts_as_lost() -> None:
    with serving({"rm": MODEL}) as client:
        port = client.port
    assert [answer.status for answer in closed_loop(port, [chat(1)], 1)] == [0]


@pytest.mark.parametrize(("expected", "wrong"), [((1.0, 2.0), False), ((2.0, 1.0), True), ((1.0, 2.001), True)])
def test_a_soak_sees_a_score_that_is_not_the_requests_own(expected: tuple[float, float], wrong: bool) -> None:
    tally, samples = Tally(), list[tuple[float, Usage]]()
    cases = [case(1.0, expected[0]), case(2.0, expected[1])]
    with serving({"rm": MODEL}) as client:
        process: Any = SimpleNamespace(pid=os.getpid())
        soak(ServerProcess(process, client.port, Path()), cases, 100.0, 0.5, tally, samples)
    assert set(tally.statuses) == {200}
    assert bool(tally.wrong) == wrong
    assert samples


@pytest.mark.parametrize(("slope", "grew"), [(0, False), (40_000, True)])
def test_memory_that_grows_is_told(slope: int, grew: bool) -> None:
    samples = [(10.0 * at, Usage(0.0, 10**8 + slope * at, 0, 16, 23)) for at in range(100)]
    found = growth(samples)
    assert found["resident_bytes"]["grew"] == grew
    assert found["resident_bytes"]["slope_per_hour"] == pytest.approx(360 * slope, abs=1.0)
    assert not found["threads"]["grew"]
    assert not found["descriptors"]["grew"]
