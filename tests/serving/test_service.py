"""What a served model has that a loaded one has not: the second graph warmed up, prefixes shared across requests."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fake_models import FakeEngine, pointwise
from rm_runtime.engines.shared_prefix import SharedPrefixEngine
from rm_runtime.serving import batcher
from served import PATIENCE, eventually, serving

LONG = "Why is the sky blue at noon and red in the evening? " * 20


class PrefixEngine:
    """Puts the prefix before every row and asks the plain engine; remembers how many rows shared one."""

    name = "fake"

    def __init__(self, plain: FakeEngine) -> None:
        self._plain = plain
        self.shared: list[int] = []
        self.reserved = 0

    def reserve(self) -> None:
        self.reserved += 1

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        ids, mask, prefix = inputs["input_ids"], inputs["attention_mask"], inputs["prefix_ids"]
        self.shared.append(len(ids))
        before = np.repeat(prefix, len(ids), axis=0)
        whole = {"input_ids": np.hstack([before, ids]), "attention_mask": np.hstack([np.ones_like(before), mask])}
        return self._plain.run(whole)


def test_a_prefix_that_two_requests_have_in_common_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "TURN_SECONDS", math.inf)  # the engine is held up below and seems slow
    busy, go = threading.Event(), threading.Event()

    def outputs_of(rendered: str) -> dict[str, float]:
        if "wait" in rendered:
            busy.set()
            assert go.wait(PATIENCE)
        return {"score": float(len(rendered))}

    model: Any = pointwise(outputs_of)
    expected = [score.as_json() for score in model.score([chat("Rayleigh."), chat("Mie, at least in part.")])]
    second = PrefixEngine(model.engine)
    model.engine = SharedPrefixEngine(model.engine, lambda: second)
    with serving({"rm": model}) as client, ThreadPoolExecutor(3) as pool:
        assert (second.shared, second.reserved) == ([1], 1), "the second graph was warmed up, its memory taken"
        first = pool.submit(
            client.post, "/v1/score", {"messages": [{"role": "user", "content": "wait"}, *chat("")[1:]]}
        )
        assert busy.wait(PATIENCE)
        answers = ("Rayleigh.", "Mie, at least in part.")
        asked = [pool.submit(client.post, "/v1/score", {"messages": chat(answer)}) for answer in answers]
        eventually(lambda: client.metric("rm_waiting_rows") == 2)
        go.set()
        assert [one.result().json for one in asked] == expected
        assert first.result().status == 200
    assert second.shared == [1, 2]


def chat(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": LONG}, {"role": "assistant", "content": answer}]
