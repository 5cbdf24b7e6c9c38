"""Statistics and scenarios on made-up clocks: a contender says how long it took, nothing is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_runtime.bench.scenarios import Run, arrivals, offline, serve, server, single_stream
from rm_runtime.bench.statistics import median, percentile

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


def taking(seconds_of: Callable[[Sequence[int]], float], log: list[tuple[int, ...]] | None = None) -> Run:
    def run(rows: Sequence[int]) -> float:
        if log is not None:
            log.append(tuple(rows))
        return seconds_of(rows)

    return run


def a_second_a_row(rows: Sequence[int]) -> float:
    return float(len(rows))


def test_percentiles_are_nearest_ranks() -> None:
    hundred = list(range(100, 0, -1))
    assert [percentile(hundred, percent) for percent in (1, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert percentile([7.0], 99) == 7.0
    assert percentile([1, 2, 3], 50) == 2
    assert median([1, 2, 3, 4]) == 2


@given(VALUES, st.sampled_from([50, 90, 99]))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_there_is_no_percentile_of_nothing_or_beyond_a_hundred(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="no percentile"):
        percentile(values, percent)


def test_single_stream_runs_every_row_alone_and_gives_its_latencies_in_milliseconds() -> None:
    log: list[tuple[int, ...]] = []
    result = single_stream({"one": taking(lambda rows: (rows[0] + 1) / 1000, log)}, 100)["one"]
    assert log == [(row,) for row in range(100)]
    assert result.queries == 100
    assert (result.p50_ms, result.p90_ms, result.p99_ms) == pytest.approx((50, 90, 99))
    assert result.mean_ms == pytest.approx(50.5)


def test_contenders_take_turns_and_each_turn_another_begins() -> None:
    order: list[str] = []

    def logged(name: str) -> Run:
        def run(rows: Sequence[int]) -> float:
            order.append(name)
            return 1.0

        return run

    contenders = {name: logged(name) for name in "abc"}
    single_stream(contenders, 3)
    assert "".join(order) == "abcbcacab"
    order.clear()
    offline(contenders, [1], rounds=2)
    assert "".join(order) == "abcbca"


def test_offline_is_the_median_round_and_counts_ids_without_padding() -> None:
    seconds = iter([9.0, 2.0, 4.0])
    result = offline({"one": taking(lambda rows: next(seconds))}, [10, 30, 60], rounds=3)["one"]
    assert result.rounds == (9.0, 2.0, 4.0)
    assert (result.seconds, result.tokens_per_second, result.conversations_per_second) == (4.0, 25.0, 0.75)


def test_arrivals_are_a_poisson_process_of_that_rate_the_same_for_one_seed() -> None:
    times = arrivals(20_000, 5.0, seed=1)
    gaps = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.2, rel=0.05)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.1)
    assert times == arrivals(20_000, 5.0, seed=1)
    assert arrivals(10, 10.0, seed=1) == pytest.approx([time / 2 for time in arrivals(10, 5.0, seed=1)])


def test_a_server_takes_all_that_wait_and_idle_time_is_skipped() -> None:
    log: list[tuple[int, ...]] = []
    result = serve(taking(a_second_a_row, log), 1.0, [0.0, 0.5, 0.75, 10.0], [1] * 4, 100, bound_ms=2500)
    assert log == [(0,), (1, 2), (3,)]
    assert result.p50_ms == 1000  # latencies: 1, 2.5, 2.25 and 1 s
    assert result.p99_ms == 2500
    assert result.met
    assert result.throughput == result.goodput == pytest.approx(4 / 11)


def test_a_server_takes_no_more_than_the_token_budget_but_always_one_row() -> None:
    log: list[tuple[int, ...]] = []
    serve(taking(a_second_a_row, log), 1.0, [0.0] * 5, [50, 50, 10, 500, 10], 100, bound_ms=1)
    assert log == [(0, 1), (2,), (3,), (4,)]


def test_goodput_counts_only_what_kept_the_bound() -> None:
    result = serve(taking(a_second_a_row), 1.0, [0.0, 0.5, 10.0], [1] * 3, 1, bound_ms=1200)
    assert result.p99_ms == 1500
    assert not result.met
    assert (result.throughput, result.goodput) == (pytest.approx(3 / 11), pytest.approx(2 / 11))


def test_the_highest_rate_that_keeps_the_bound_is_found() -> None:
    def batched(rows: Sequence[int]) -> float:
        return 0.1 + 0.01 * len(rows)

    lengths = [1] * 400
    found = server({"one": taking(batched)}, lengths, 10**6, bound_ms=400, seed=3)["one"]
    assert found.met
    assert found.p99_ms <= 400
    step = 400 / batched(lengths) / 64
    beyond = serve(taking(batched), 1.0, arrivals(400, found.rate + step, 3), lengths, 10**6, 400)
    assert not beyond.met


def test_a_bound_that_no_rate_keeps_is_said() -> None:
    found = server({"one": taking(a_second_a_row)}, [1] * 20, 100, bound_ms=10, seed=0)["one"]
    assert not found.met
    assert found.goodput == 0
    assert found.rate == pytest.approx(1 / 64)


def test_a_rate_that_is_given_is_not_searched() -> None:
    log: list[tuple[int, ...]] = []
    result = server({"one": taking(a_second_a_row, log)}, [1] * 5, 1, bound_ms=1e6, seed=0, rate=0.25)["one"]
    assert result.rate == 0.25
    assert len(log) == 5
