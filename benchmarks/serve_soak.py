"""`rm-runtime serve` for half an hour: `python benchmarks/serve_soak.py [--minutes 30] [--bundle DIR]`.

Poisson arrivals at 80 % of the capacity that a closed loop found; all routes that score, singles and several at once;
one client in ten hangs up at a random moment. Every answer is checked against what the model itself gave for each of
its chats alone, in a process of its own. A score may differ by what other batches round otherwise: TOLERANCE of the
scores' standard deviation, which is far less than lies between two requests (the report says for how many pairs of
scores that is so, hence what share of mix-ups it would see). The server's memory, threads and descriptors are taken
every ten seconds, without the thread and the connection that each request in work has; after a warm-up, the growth is
the least-squares slope and last quarter less first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from direct_process import DirectProcess
from http_load import Connections, closed_loop
from load_requests import load_requests
from rm_runtime.bench.machine import machine_facts
from rm_runtime.bench.statistics import percentile
from rm_runtime.bundle import open_bundle
from serve_load import write_bundle
from server_process import ServerProcess, Usage, free_port, rm_runtime_serve, started
from soak_cases import Case, cases_of

SHARE_OF_CAPACITY = 0.8
HANG_UPS = 0.1
SAMPLE_SECONDS = 10.0
WARM_UP = 0.2
"""Share of the time whose samples are left out: caches, threads and the engine's memory pool fill."""

TOLERANCE = 1e-4
"""Of the scores' standard deviation."""

GROWTH = {"resident_bytes": 0.01, "threads": 0.0, "descriptors": 0.0}
"""By how much of the first quarter's median the last one's may be above it; descriptors and threads also by NOISE."""
NOISE = 3.0
"""Requests that come or end while a sample is taken."""


@dataclass
class Tally:
    """What became of the requests. worst: largest difference of a score, of their deviation."""

    statuses: Counter[int] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)
    hung_up: int = 0
    wrong: int = 0
    worst: float = 0.0
    seconds: list[float] = field(default_factory=list)


def soak(
    server: ServerProcess,
    cases: Sequence[Case],
    rate: float,
    seconds: float,
    tally: Tally,
    samples: list[tuple[float, Usage]],
) -> None:
    """Ask for so long; enter what came back, and what the server takes."""
    deviation = deviation_of(cases)
    rng = np.random.default_rng(3)
    connections = Connections(server.port)
    running: set[asyncio.Task[None]] = set()

    async def ask(case: Case, due: float, patience: float | None) -> None:
        try:
            async with asyncio.timeout(patience):
                status, _, body = await connections.ask(case.request)
        except TimeoutError:
            tally.hung_up += 1
            return
        except OSError:
            status, body = 0, b""
        tally.seconds.append(time.monotonic() - due)
        tally.statuses[status] += 1
        tally.routes[case.route] += 1
        if status == 200:
            differences = np.abs(np.subtract(case.scores_of(json.loads(body)), case.expected)) / deviation
            tally.worst = max(tally.worst, float(differences.max()))
            tally.wrong += bool(differences.max() > TOLERANCE)

    async def sample(began: float) -> None:
        while True:
            usage = server.usage()
            own = replace(
                usage, threads=usage.threads - len(running), descriptors=usage.descriptors - connections.opened
            )
            samples.append((time.monotonic() - began, own))
            print(f"{samples[-1]} {dict(tally.statuses)} {tally.wrong} wrong", flush=True)
            await asyncio.sleep(SAMPLE_SECONDS)

    async def work() -> None:
        due = time.monotonic()
        end = due + seconds
        sampling = asyncio.ensure_future(sample(due))
        while due < end:
            due += rng.exponential(1 / rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            patience = rng.uniform(0.0, 0.5) if rng.random() < HANG_UPS else None
            task = asyncio.ensure_future(ask(cases[rng.integers(len(cases))], due, patience))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
        sampling.cancel()
        connections.close()

    asyncio.run(work())


def growth(samples: Sequence[tuple[float, Usage]]) -> dict[str, dict[str, float]]:
    """Of each figure after the warm-up: medians of the first and last quarter, slope an hour, and whether it grew.

    Medians, as a sample is not of one moment: where the machine stalls, the client counts requests that the server has
    not seen, and these are taken from the server's threads.
    """
    kept = samples[int(WARM_UP * len(samples)) :]
    hours = np.array([at for at, _ in kept]) / 3600
    quarter = max(1, len(kept) // 4)
    grown = {}
    for name, allowed in GROWTH.items():
        values = np.array([float(getattr(usage, name)) for _, usage in kept])
        first, last = float(np.median(values[:quarter])), float(np.median(values[-quarter:]))
        slope = float(np.polyfit(hours, values, 1)[0])
        noise = 0.0 if name == "resident_bytes" else NOISE
        grew = last - first > allowed * first + noise
        grown[name] = {"first": first, "last": last, "slope_per_hour": slope, "grew": grew}
    return grown


def deviation_of(cases: Sequence[Case]) -> float:
    """Standard deviation of the scores."""
    return float(np.std([score for case in cases for score in case.expected]))


def distinguishable(cases: Sequence[Case]) -> float:
    """Share of pairs of scores that lie further apart than the tolerance."""
    scores = np.array([score for case in cases for score in case.expected])
    apart = np.abs(scores[:, None] - scores[None, :]) > 2 * TOLERANCE * deviation_of(cases)
    return float(apart.sum() / (len(scores) * (len(scores) - 1)))


def report(tally: Tally, samples: Sequence[tuple[float, Usage]], cases: Sequence[Case]) -> dict[str, Any]:
    """The figures."""
    return {
        "answered": sum(tally.statuses.values()),
        "statuses": dict(tally.statuses),
        "routes": dict(tally.routes),
        "hung_up": tally.hung_up,
        "wrong": tally.wrong,
        "worst_difference": tally.worst,
        "distinguishable_pairs": distinguishable(cases),
        "p50_ms": 1000 * percentile(tally.seconds, 50),
        "p99_ms": 1000 * percentile(tally.seconds, 99),
        "growth": growth(samples),
        "samples": [{"at": at, **asdict(usage)} for at, usage in samples],
    }


def table(figures: dict[str, Any]) -> str:
    """Markdown, and the verdict."""
    lost = sum(count for status, count in figures["statuses"].items() if status not in (200, 429))
    lines = [
        "| what | figure |",
        "|---|---|",
        f"| answers, by status | {figures['statuses']} |",
        f"| routes | {figures['routes']} |",
        f"| clients that hung up | {figures['hung_up']} |",
        f"| wrong scores | **{figures['wrong']}** |",
        f"| largest difference, of the scores' deviation | {figures['worst_difference']:.1e} |",
        f"| pairs of scores further apart than the tolerance | {100 * figures['distinguishable_pairs']:.1f} % |",
        f"| p50, p99 | {figures['p50_ms']:.0f} ms, {figures['p99_ms']:.0f} ms |",
    ]
    for name, of in figures["growth"].items():
        scale, unit = (2**20, " MiB") if name.endswith("bytes") else (1, "")
        first, last, slope = (of[key] / scale for key in ("first", "last", "slope_per_hour"))
        lines.append(
            f"| {name}: first, last quarter; slope | {first:.1f}, {last:.1f}{unit}; {slope:+.1f}{unit} an hour |"
        )
    grown = [name for name, of in figures["growth"].items() if of["grew"]]
    found = [f"{figures['wrong']} wrong"] * bool(figures["wrong"]) + [f"{lost} failed"] * bool(lost)
    found += [f"{name} grew" for name in grown]
    return "\n".join([*lines, f"\nVerdict: {'; '.join(found) or 'no wrong score, none lost, nothing grew'}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, help="requests a second; default: 80 %% of what a closed loop reaches")
    parser.add_argument("--bundle", type=Path, help="default: the demo's")
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.bundle or write_bundle("demo", Path(folder))
        bundle = open_bundle(path)
        with DirectProcess(path, arguments.threads) as direct:
            cases = cases_of(load_requests(bundle, 350, seed=4), bundle, direct)
        port = free_port()
        with started(rm_runtime_serve(path, port, "--threads", str(arguments.threads)), port) as server:
            took = []
            for _ in range(2):
                began = time.monotonic()
                closed_loop(port, [case.request for case in cases], 32)
                took.append(time.monotonic() - began)
            rate = arguments.rate or SHARE_OF_CAPACITY * len(cases) / min(took)
            print(f"{machine_facts()}\n{arguments.minutes:g} minutes at {rate:.1f} requests/s\n", flush=True)
            tally, samples = Tally(), list[tuple[float, Usage]]()
            soak(server, cases, rate, 60 * arguments.minutes, tally, samples)
    figures = report(tally, samples, cases)
    print(table(figures), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rate": rate, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
