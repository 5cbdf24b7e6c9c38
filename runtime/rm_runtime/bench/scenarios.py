"""The scenarios of MLPerf inference, each a function of how long a contender takes for given rows.

SingleStream: one row at a time, the next when the last is done. Offline: all rows at hand at once. Server: rows arrive
at random (a Poisson process) and wait for each other. Contenders take turns, and who begins changes every turn, so that
a change of the machine's speed meets all. Clocks are the contenders' own: nothing here measures time.
Source: Reddi et al., MLPerf Inference Benchmark, arXiv 1911.02549, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from rm_runtime.bench.statistics import median, percentile

Run = Callable[[Sequence[int]], float]
"""Runs the rows of these numbers as one request; returns the seconds it took."""

Arrive = Callable[[Sequence[int], Sequence[float]], list[float]]
"""Asks a live server: row rows[i] after arriving[i] seconds; returns after how many seconds each is answered."""

SEARCH_STEPS = 6
"""Halvings of the interval in which the server's highest rate lies: a 64th of the offline rate is left."""


LIVE_SECONDS = 20.0
"""For which a rate is tried on a live server, where time between arrivals passes; rows that come later are left out."""

LIVE_ROWS = 16
"""Which are sent however long it takes."""


@dataclass(frozen=True)
class SingleStream:
    """Latencies of single rows in milliseconds."""

    queries: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float


@dataclass(frozen=True)
class Offline:
    """All rows at once: the median round. tokens: ids of the rows, padding not counted."""

    seconds: float
    tokens_per_second: float
    conversations_per_second: float
    rounds: tuple[float, ...]


@dataclass(frozen=True)
class Served:
    """Random arrivals at one rate. Rates are conversations per second.

    latency: from arrival to result. goodput: conversations per second that were answered within the bound. met: the
    99th percentile kept the bound.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    throughput: float
    goodput: float
    met: bool


def in_turns(contenders: Mapping[str, Run], turn: int) -> list[str]:
    """The contenders' names, each turn beginning with the next."""
    names = list(contenders)
    start = turn % len(names)
    return names[start:] + names[:start]


def single_stream(contenders: Mapping[str, Run], rows: int) -> dict[str, SingleStream]:
    """Every row alone, in order."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for row in range(rows):
        for name in in_turns(contenders, row):
            seconds[name].append(contenders[name]([row]))
    return {name: _latencies([1000 * value for value in of]) for name, of in seconds.items()}


def offline(contenders: Mapping[str, Run], lengths: Sequence[int], rounds: int) -> dict[str, Offline]:
    """All rows as one request, `rounds` times. lengths: ids of each row."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in in_turns(contenders, turn):
            seconds[name].append(contenders[name](range(len(lengths))))
    return {
        name: Offline(median(of), sum(lengths) / median(of), len(lengths) / median(of), tuple(of))
        for name, of in seconds.items()
    }


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds at which `count` rows arrive; the same random gaps for every rate, scaled."""
    gaps = np.random.default_rng(seed).exponential(size=count)
    return [float(gap) / rate for gap in accumulate(gaps)]


def serve(
    run: Run, rate: float, arriving: Sequence[float], lengths: Sequence[int], batch_tokens: int, bound_ms: float
) -> Served:
    """One worker that takes all rows waiting, as many as the token budget holds, whenever it is free.

    Time between requests is not waited for but skipped: only the work is real. Row i arrives at arriving[i]
    seconds, at `rate` a second on average.
    """
    now, first = 0.0, 0
    latencies: list[float] = []
    while first < len(arriving):
        now = max(now, arriving[first])
        last, tokens = first + 1, lengths[first]
        while last < len(arriving) and arriving[last] <= now and tokens + lengths[last] <= batch_tokens:
            tokens += lengths[last]
            last += 1
        now += run(range(first, last))
        latencies += [1000 * (now - arrival) for arrival in arriving[first:last]]
        first = last
    return _served(rate, latencies, now, bound_ms)


def serve_live(arrive: Arrive, rate: float, arriving: Sequence[float], bound_ms: float) -> Served:
    """A server of its own, which batches as it does: rows are sent when they arrive, and that time passes."""
    arriving = [arrival for row, arrival in enumerate(arriving) if row < LIVE_ROWS or arrival <= LIVE_SECONDS]
    answered = arrive(range(len(arriving)), arriving)
    latencies = [1000 * (end - arrival) for end, arrival in zip(answered, arriving, strict=True)]
    return _served(rate, latencies, max(answered), bound_ms)


def server(
    contenders: Mapping[str, Run],
    lengths: Sequence[int],
    batch_tokens: int,
    bound_ms: float,
    seed: int,
    rate: float | None = None,
    live: Mapping[str, Arrive] | None = None,
) -> dict[str, Served]:
    """Every contender at `rate`; or, without one, at the highest rate found whose 99th percentile keeps the bound.

    live: of those that are servers themselves.

    The search halves the interval from 0 to the contender's own offline rate; if no rate kept the bound, the lowest one
    tried is returned, and its `met` says so.
    """

    def at(name: str, tried: float) -> Served:
        arriving = arrivals(len(lengths), tried, seed)
        if live and name in live:
            return serve_live(live[name], tried, arriving, bound_ms)
        return serve(contenders[name], tried, arriving, lengths, batch_tokens, bound_ms)

    if rate is not None:
        return {name: at(name, rate) for name in contenders}
    searches = {name: (0.0, len(lengths) / run(range(len(lengths)))) for name, run in contenders.items()}
    found: dict[str, Served] = {}
    for step in range(SEARCH_STEPS):
        for name in in_turns(contenders, step):
            low, high = searches[name]
            middle = (low + high) / 2
            served = at(name, middle)
            searches[name] = (middle, high) if served.met else (low, middle)
            if served.met or name not in found or not found[name].met:
                found[name] = served
    return found


def _served(rate: float, latencies: Sequence[float], seconds: float, bound_ms: float) -> Served:
    p99 = percentile(latencies, 99)
    within = sum(latency <= bound_ms for latency in latencies)
    return Served(rate, percentile(latencies, 50), p99, len(latencies) / seconds, within / seconds, p99 <= bound_ms)


def _latencies(values: Sequence[float]) -> SingleStream:
    p50, p90, p99 = (percentile(values, percent) for percent in (50, 90, 99))
    return SingleStream(len(values), p50, p90, p99, sum(values) / len(values))
