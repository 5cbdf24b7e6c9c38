"""Rows of ids into batches and back."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_models import FakeEngine
from rm_runtime.batching import FREE_PADDING, MAX_PADDING, pad_rows, plan_batches, run_rows
from rm_runtime.engines.shared_prefix import SharedPrefixEngine
from rm_runtime.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

LENGTHS = st.lists(st.integers(0, 300), max_size=60)
ROWS = st.lists(
    st.lists(st.integers(1, 9), max_size=20).map(lambda ids: np.array(ids, np.int64)), min_size=1, max_size=30
)


def number_of(ids: NDArray[np.int64]) -> dict[str, Any]:
    """Outputs that tell rows apart: their ids as one decimal number, and it twice."""
    number = float(hash(ids.tobytes()) % 65_521)
    return {"score": number, "logits": [number, -number]}


def padding_of(lengths: list[int], batch: list[int]) -> int:
    return len(batch) * max(lengths[row] for row in batch) - sum(lengths[row] for row in batch)


@given(LENGTHS, st.integers(1, 1000))
def test_every_row_is_in_exactly_one_batch(lengths: list[int], budget: int) -> None:
    rows = [row for batch in plan_batches(lengths, budget) for row in batch]
    assert sorted(rows) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 1000))
def test_a_batch_with_its_padding_keeps_the_budget_unless_it_is_one_row(lengths: list[int], budget: int) -> None:
    for batch in plan_batches(lengths, budget):
        width = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * width <= budget


@given(LENGTHS, st.integers(1, 1000))
def test_batches_come_longest_first(lengths: list[int], budget: int) -> None:
    planned = [lengths[row] for batch in plan_batches(lengths, budget) for row in batch]
    assert planned == sorted(lengths, reverse=True)


@given(LENGTHS, st.integers(1, 1000))
def test_no_batch_could_take_the_next_row_as_well(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    for batch, following in pairwise(batches):
        joined = [*batch, following[0]]
        padding = padding_of(lengths, joined)
        area = len(joined) * lengths[batch[0]]
        assert area > budget or (padding > FREE_PADDING and padding > MAX_PADDING * area)


@given(LENGTHS, st.integers(1, 10_000))
def test_a_tenth_of_a_batch_is_padding_at_most_but_for_a_few_ids(lengths: list[int], budget: int) -> None:
    for batch in plan_batches(lengths, budget):
        area = len(batch) * max(lengths[row] for row in batch)
        assert padding_of(lengths, batch) <= max(FREE_PADDING, MAX_PADDING * area)


@given(st.integers(0, 2**32 - 1), st.integers(16, 256), st.sampled_from([1024, 4096, 16_384]))
def test_a_tenth_of_mixed_length_chats_is_padding_at_most(seed: int, rows: int, budget: int) -> None:
    lengths = np.random.default_rng(seed).integers(50, 1501, rows).tolist()
    batches = plan_batches(lengths, budget)
    padding = sum(padding_of(lengths, batch) for batch in batches)
    assert padding <= 0.1 * (sum(lengths) + padding)


def test_no_rows_need_no_batch_and_no_run() -> None:
    assert plan_batches([]) == []
    assert run_rows(FakeEngine(number_of), [], 0) == {}


@given(ROWS)
def test_rows_are_padded_on_the_right_with_the_pad_id_and_a_zero_mask(rows: list[NDArray[np.int64]]) -> None:
    ids, mask = pad_rows(rows, 77)
    assert ids.shape == mask.shape == (len(rows), max(1, *(len(row) for row in rows), 1))
    for row, padded, attended in zip(rows, ids, mask, strict=True):
        assert padded[: len(row)].tolist() == row.tolist()
        assert set(padded[len(row) :].tolist()) <= {77}
        assert attended.tolist() == [1] * len(row) + [0] * (ids.shape[1] - len(row))


@given(ROWS, st.integers(1, 200))
def test_results_come_in_the_order_of_the_rows_whatever_the_budget(rows: list[NDArray[np.int64]], budget: int) -> None:
    outputs = run_rows(FakeEngine(number_of), rows, 0, budget)
    assert outputs["score"].tolist() == [number_of(row)["score"] for row in rows]
    assert outputs["logits"].tolist() == [number_of(row)["logits"] for row in rows]
    assert outputs["logits"].dtype == np.float32


def test_rows_of_one_length_fill_batches_to_the_budget() -> None:
    engine = FakeEngine(number_of)
    run_rows(engine, [np.full(10, row, np.int64) for row in range(10)], 0, batch_tokens=40)
    assert engine.batches == [4, 4, 2]


def test_an_error_of_the_engine_is_not_swallowed() -> None:
    def fail(ids: NDArray[np.int64]) -> dict[str, Any]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        run_rows(FakeEngine(fail), [np.ones(3, np.int64)], 0)


class Continuing(FakeEngine):
    """A fake of the graph that shares a prefix: it sees every row in full again."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        prefix, ids, mask = inputs["prefix_ids"], inputs["input_ids"], inputs["attention_mask"]
        assert prefix.shape == (1, prefix.size)
        assert prefix.size > 0
        before = np.repeat(prefix, len(ids), axis=0)
        return super().run(
            {
                "input_ids": np.concatenate([before, ids], axis=1),
                "attention_mask": np.concatenate([np.ones_like(before), mask], axis=1),
            }
        )


def best_of(answers: int) -> list[NDArray[np.int64]]:
    """Rows behind one prompt of 100 ids, of 1, 2, ... ids of their own, the longest in the middle."""
    lengths = [*range(1, answers + 1, 2), *range(answers - answers % 2, 0, -2)]
    return [np.array([7] * 100 + [1 + length] * length, np.int64) for length in lengths]


def test_results_come_in_the_order_of_the_rows_when_some_share_a_prefix() -> None:
    rows = [np.full(40, 5, np.int64), *best_of(5), np.full(3, 6, np.int64), np.empty(0, np.int64)]
    plain, second = FakeEngine(number_of), Continuing(number_of)
    outputs = run_rows(SharedPrefixEngine(plain, lambda: second), rows, 0)
    assert outputs["score"].tolist() == [number_of(row)["score"] for row in rows]
    assert outputs["logits"].tolist() == [number_of(row)["logits"] for row in rows]
    assert second.batches == [5]
    assert sum(plain.batches) == 3


def test_the_second_graph_is_opened_once_and_not_before_it_is_needed() -> None:
    opened = []

    def open_second() -> Continuing:
        opened.append(Continuing(number_of))
        return opened[-1]

    engine = SharedPrefixEngine(FakeEngine(number_of), open_second)
    run_rows(engine, [np.full(40, row, np.int64) for row in range(4)], 0)
    assert opened == []
    for _ in range(2):
        run_rows(engine, best_of(4), 0)
    assert [second.batches for second in opened] == [[4, 4]]


def test_an_engine_with_one_graph_computes_every_row_in_full() -> None:
    engine = FakeEngine(number_of)
    run_rows(engine, best_of(4), 0)
    assert engine.batches == [4]


def test_an_error_of_the_second_graph_is_not_swallowed() -> None:
    def fail() -> FakeEngine:
        raise EngineError("onnxruntime ran out of memory while loading model.prefix.onnx")

    with pytest.raises(EngineError, match=r"model\.prefix\.onnx"):
        run_rows(SharedPrefixEngine(FakeEngine(number_of), fail), best_of(4), 0)
