"""Which rows are computed as continuations of one prefix."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rm_runtime.batching import MAX_PADDING
from rm_runtime.shared_prefixes import LEAST_SAVED_SHARE, LEAST_SAVED_TOKENS, PrefixBatch, new_ids, plan_shared_prefixes

Row = NDArray[np.int64]

RUNS = st.tuples(st.integers(0, 2), st.integers(0, 70))
"""An id and how often it comes: rows of few runs begin alike, at all depths."""
ROWS = st.lists(
    st.lists(RUNS, max_size=4).map(lambda runs: np.array([i for i, n in runs for _ in range(n)], np.int64)), max_size=14
)
BUDGETS = st.integers(1, 1500)


def row(*runs: tuple[int, int]) -> Row:
    """Row of (id, how often)."""
    return np.array([i for i, count in runs for _ in range(count)], np.int64)


@given(ROWS, BUDGETS)
def test_every_row_is_in_one_batch_or_in_full(rows: list[Row], budget: int) -> None:
    batches, full = plan_shared_prefixes(rows, budget, MAX_PADDING)
    assert sorted([*full, *(place for batch in batches for place in batch.rows)]) == list(range(len(rows)))
    assert full == sorted(full)


@given(ROWS, BUDGETS)
def test_rows_of_a_batch_begin_with_its_prefix(rows: list[Row], budget: int) -> None:
    for batch in plan_shared_prefixes(rows, budget, MAX_PADDING)[0]:
        assert batch.prefix >= 1
        prefixes = {tuple(rows[place][: batch.prefix].tolist()) for place in batch.rows}
        assert len(prefixes) == 1
        assert len(prefixes.pop()) == batch.prefix


@given(ROWS, BUDGETS)
def test_every_batch_spares_enough_tokens_within_the_budget(rows: list[Row], budget: int) -> None:
    lengths = [len(one) for one in rows]
    for batch in plan_shared_prefixes(rows, budget, MAX_PADDING)[0]:
        in_full = sum(lengths[place] for place in batch.rows)
        assert in_full - batch.tokens(lengths) >= max(LEAST_SAVED_TOKENS, LEAST_SAVED_SHARE * in_full)
        assert batch.tokens(lengths) <= budget


def test_best_of_n_is_one_batch_behind_the_whole_prompt() -> None:
    rows = [row((1, 300), (10 + answer, 20 + answer)) for answer in range(8)]
    assert plan_shared_prefixes(rows, 4096, MAX_PADDING) == ([PrefixBatch(300, (7, 6, 5, 4, 3, 2, 1, 0))], [])


def test_a_batch_that_is_full_is_followed_by_another_with_the_same_prefix() -> None:
    rows = [row((1, 300), (10 + answer, 50)) for answer in range(8)]
    batches, full = plan_shared_prefixes(rows, 300 + 4 * 50, MAX_PADDING)
    assert [(batch.prefix, len(batch.rows)) for batch in batches] == [(300, 4), (300, 4)]
    assert full == []


def test_two_prompts_are_two_batches_though_all_rows_share_a_system_prompt() -> None:
    rows = [row((1, 50), (2 + prompt, 300), (10 + answer, 20)) for prompt in range(2) for answer in range(4)]
    batches, full = plan_shared_prefixes(rows, 4096, MAX_PADDING)
    assert {(batch.prefix, batch.rows) for batch in batches} == {(350, (0, 1, 2, 3)), (350, (4, 5, 6, 7))}
    assert full == []


def test_many_rows_with_a_system_prompt_go_before_two_that_share_more() -> None:
    rows = [row((1, 400), (10 + chat, 20)) for chat in range(8)] + [
        row((1, 400), (30, 40), (31 + chat, 20)) for chat in (0, 1)
    ]
    ((batch,), full) = plan_shared_prefixes(rows, 4096, MAX_PADDING)
    assert (batch.prefix, sorted(batch.rows), full) == (400, list(range(10)), [])


def test_rows_that_share_only_the_start_of_a_template_are_computed_in_full() -> None:
    rows = [row((1, 5), (10 + chat, 200)) for chat in range(8)]
    assert plan_shared_prefixes(rows, 4096, MAX_PADDING) == ([], list(range(8)))


def test_one_long_row_does_not_widen_the_batch_of_its_short_neighbours() -> None:
    rows = [row((1, 300), (10, 2000)), *(row((1, 300), (11 + answer, 20)) for answer in range(4))]
    batches, _ = plan_shared_prefixes(rows, 2700, MAX_PADDING)
    assert (1, 2, 3, 4) in [batch.rows for batch in batches]


@given(ROWS, BUDGETS)
def test_padding_is_at_most_a_tenth_or_what_the_prefix_would_cost_again(rows: list[Row], budget: int) -> None:
    for batch in plan_shared_prefixes(rows, budget, MAX_PADDING)[0]:
        own = [len(rows[place]) - batch.prefix for place in batch.rows]
        area = len(own) * max(1, *own)
        assert area - sum(own) <= max(batch.prefix, MAX_PADDING * area)


def test_a_row_that_is_itself_the_prefix_is_one_of_the_batch() -> None:
    rows = [row((1, 300)), row((1, 300), (2, 10)), row((1, 300))]
    ((batch,), full) = plan_shared_prefixes(rows, 4096, MAX_PADDING)
    assert (batch.prefix, sorted(batch.rows), full) == (300, [0, 1, 2], [])


def test_no_rows_make_no_batch() -> None:
    assert plan_shared_prefixes([], 4096, MAX_PADDING) == ([], [])


@given(st.lists(st.lists(st.integers(0, 1), max_size=6), max_size=8))
def test_new_ids_are_those_behind_what_the_row_before_begins_with_too(lists: list[list[int]]) -> None:
    rows = [np.array(ids, np.int64) for ids in lists]
    for place, (ids, new) in enumerate(zip(lists, new_ids(rows), strict=True)):
        before = lists[place - 1] if place else []
        kept = len(ids) - new
        assert ids[:kept] == before[:kept]
        assert new == 0 or kept == len(before) or ids[kept] != before[kept]
