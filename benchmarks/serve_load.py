"""`rm-runtime serve` under load: `python benchmarks/serve_load.py [--bundles demo 1b] [--json F]`.

The server is a process of its own on loopback, the same command with the same threads that a user starts; the client
is asyncio on plain sockets and says how much CPU it took. Bundles: the demo's, and a Llama-3.2-1B with random weights
in int8 (its checkpoint takes 2.5 GB of disk while the script runs). Requests are chats of realistic length, singles and
best-of-n mixed (load_requests.py). Measured:

- saturation: closed loop, every request once, against one direct call of all the same requests (model.score on all of
  them at once, in a process with the same threads). Both take turns; medians of the rounds.
- low load: one client, one request after the other, each asked directly and of the server by turns; the overhead is the
  median of the differences, each the least of its repeats.
- overload: a Poisson stream of three times the capacity. None may be lost, refusals are 429 with Retry-After, and the
  slowest answers stay within the bound that the report states.

On two cores use --threads 1: the other core is the client's. About five minutes for the demo, fifteen for both.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import full_size
from direct_process import DirectProcess
from engines import CALIBRATION
from http_load import Answered, closed_loop, open_loop, post
from load_requests import LoadRequest, load_requests
from rm_export.demo import checkpoint_path
from rm_export.exporter import export_checkpoint
from rm_export.hub import open_checkpoint_at
from rm_runtime.bench.machine import machine_facts
from rm_runtime.bench.statistics import percentile
from rm_runtime.bundle import open_bundle
from rm_runtime.serving.limits import Limits
from server_process import ServerProcess, free_port, rm_runtime_serve, started

OVERLOAD = 3.0
"""Times the capacity."""


@dataclass(frozen=True)
class Sizes:
    """How much of each measurement. clients: of the closed loop; alone: requests asked one after the other."""

    requests: int
    clients: int
    rounds: int
    alone: int
    repeats: int
    overload_seconds: float


SIZES = {"demo": Sizes(500, 64, 5, 60, 3, 30.0), "1b": Sizes(10, 4, 2, 3, 2, 60.0)}


def write_bundle(name: str, folder: Path) -> Path:
    """The bundle of that name."""
    if name == "demo":
        return export_checkpoint(open_checkpoint_at(str(checkpoint_path()), None), folder / "bundle")
    checkpoint = full_size.llama_1b(folder / "checkpoint", 16)
    opened = open_checkpoint_at(str(checkpoint), None)
    return export_checkpoint(opened, folder / "bundle", precision="int8", quantisation=CALIBRATION)


def measured(bundle: Path, sizes: Sizes, threads: int) -> dict[str, Any]:
    """All figures of a bundle."""
    requests = load_requests(open_bundle(bundle), sizes.requests, seed=1)
    port = free_port()
    command = rm_runtime_serve(bundle, port, "--threads", str(threads))
    with started(command, port) as server, DirectProcess(bundle, threads) as direct:
        figures = {
            "saturation": saturation(server, direct, requests, sizes),
            "low_load": low_load(server, direct, requests[: sizes.alone], sizes.repeats),
        }
        rate = OVERLOAD * figures["saturation"]["requests_per_second"]
        figures["overload"] = overload(server, requests, rate, sizes.overload_seconds)
        figures["peak_bytes"] = server.usage().peak_bytes
    return figures


def saturation(
    server: ServerProcess, direct: DirectProcess, requests: Sequence[LoadRequest], sizes: Sizes
) -> dict[str, Any]:
    """Requests a second of the server and of one direct call, by turns, and the CPU time of both and of the client."""
    posts, documents = _posts(requests), [request.document for request in requests]
    rounds = []
    for number in range(sizes.rounds + 1):
        offline = direct.all_at_once(documents)
        began, client, cpu = time.monotonic(), time.process_time(), server.usage().cpu_seconds
        answers = closed_loop(server.port, posts, sizes.clients)
        of_round = {
            "offline_seconds": offline.seconds,
            "offline_cpu_seconds": offline.cpu_seconds,
            "server_seconds": time.monotonic() - began,
            "server_cpu_seconds": server.usage().cpu_seconds - cpu,
            "client_cpu_seconds": time.process_time() - client,
        }
        _check_all_answered(answers)
        if number:  # the first warms up
            rounds.append(of_round)
    middle = {key: median(of_round[key] for of_round in rounds) for key in rounds[0]}
    return {
        "requests": len(requests),
        "rows": sum(request.rows for request in requests),
        "clients": sizes.clients,
        "rounds": rounds,
        "requests_per_second": len(requests) / middle["server_seconds"],
        "offline_requests_per_second": len(requests) / middle["offline_seconds"],
        "ratio": middle["offline_seconds"] / middle["server_seconds"],
        "cpu_ratio": middle["offline_cpu_seconds"] / middle["server_cpu_seconds"],
        "client_cpu_share": middle["client_cpu_seconds"] / middle["server_seconds"],
    }


def low_load(
    server: ServerProcess, direct: DirectProcess, requests: Sequence[LoadRequest], repeats: int
) -> dict[str, Any]:
    """Milliseconds of requests one after the other, of the server and directly."""
    served_ms, direct_ms = [], []
    for request in requests:
        posts = _posts([request])
        of_server, of_direct = [], []
        for _ in range(repeats + 1):
            of_direct.append(1000 * direct.one(request.document))
            of_server.append(1000 * closed_loop(server.port, posts * 2, 1)[1].seconds)  # the first opens the connection
        served_ms.append(min(of_server[1:]))
        direct_ms.append(min(of_direct[1:]))
    overheads = [served - alone for served, alone in zip(served_ms, direct_ms, strict=True)]
    return {
        "requests": len(requests),
        "server_p50_ms": median(served_ms),
        "direct_p50_ms": median(direct_ms),
        "overhead_p50_ms": median(overheads),
        "overhead_p90_ms": percentile(overheads, 90),
    }


def overload(server: ServerProcess, requests: Sequence[LoadRequest], rate: float, seconds: float) -> dict[str, Any]:
    """What becomes of a Poisson stream of `rate` requests a second."""
    began, client = time.monotonic(), time.process_time()
    answers = open_loop(server.port, _posts(requests), rate, seconds, seed=2)
    took = time.monotonic() - began
    statuses = Counter(answer.status for answer in answers)
    accepted = [answer.seconds for answer in answers if answer.status == 200]
    shed = [answer for answer in answers if answer.status == 429]
    return {
        "sent": len(answers),
        "rate": rate,
        "seconds": seconds,
        "statuses": dict(statuses),
        "shed_share": len(shed) / len(answers),
        "shed_without_retry_after": sum(answer.retry_after is None for answer in shed),
        "retry_after_p50": median(answer.retry_after or 0 for answer in shed) if shed else None,
        "shed_p99_ms": 1000 * percentile([answer.seconds for answer in shed], 99) if shed else None,
        "accepted_per_second": len(accepted) / took,
        "accepted_p50_seconds": percentile(accepted, 50),
        "accepted_p99_seconds": percentile(accepted, 99),
        "accepted_longest_seconds": max(accepted),
        "bound_seconds": Limits().max_wait_seconds,
        "client_cpu_share": (time.process_time() - client) / took,
    }


def table(name: str, figures: dict[str, Any]) -> Iterator[str]:
    """Markdown rows."""
    full, alone, over = figures["saturation"], figures["low_load"], figures["overload"]
    others = {status: count for status, count in over["statuses"].items() if status not in (200, 429)}
    rows = {
        f"closed loop, {full['clients']} clients: requests/s": f"{full['requests_per_second']:.2f}",
        "one direct call of all: requests/s": f"{full['offline_requests_per_second']:.2f}",
        "server / direct": f"**{100 * full['ratio']:.0f} %** (CPU time: {100 * full['cpu_ratio']:.0f} %)",
        "low load, p50: server, direct": f"{alone['server_p50_ms']:.1f} ms, {alone['direct_p50_ms']:.1f} ms",
        "overhead p50 (p90)": f"**{alone['overhead_p50_ms']:.1f} ms** ({alone['overhead_p90_ms']:.1f} ms)",
        f"overload {over['rate']:.1f} requests/s: shed with 429": f"{100 * over['shed_share']:.0f} %",
        "accepted: p50, p99, longest": ", ".join(
            f"{over[f'accepted_{which}_seconds']:.1f} s" for which in ("p50", "p99", "longest")
        ),
        "bound: --max-wait": f"{over['bound_seconds']:g} s",
        "accepted a second": f"{over['accepted_per_second']:.2f}",
        "neither 200 nor 429; 429 without Retry-After": f"{others or 0}; {over['shed_without_retry_after']}",
        "client's CPU, closed loop and overload": f"{100 * full['client_cpu_share']:.1f} %, "
        f"{100 * over['client_cpu_share']:.1f} % of a core",
        "server's peak memory": f"{figures['peak_bytes'] / 2**20:.0f} MiB",
    }
    yield from (f"| {name} | {what} | {figure} |" for what, figure in rows.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--bundle", type=Path, help="measure this one, with the sizes of the first of --bundles")
    parser.add_argument("--threads", type=int, default=1, help="of the engine, here and there")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine_facts(), "threads": arguments.threads, "bundles": {}}
    print(f"{figures['machine']}\n{arguments.threads} threads\n\n| bundle | what | figure |\n|---|---|---|", flush=True)
    for name in arguments.bundles:
        with tempfile.TemporaryDirectory() as folder:
            bundle = arguments.bundle or write_bundle(name, Path(folder))
            figures["bundles"][name] = measured(bundle, SIZES[name], arguments.threads)
        print("\n".join(table(name, figures["bundles"][name])), flush=True)
        if arguments.bundle:
            break
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _posts(requests: Sequence[LoadRequest]) -> list[bytes]:
    return [post("/v1/score", request.body) for request in requests]


def _check_all_answered(answers: Sequence[Answered]) -> None:
    statuses = Counter(answer.status for answer in answers)
    if set(statuses) != {200}:
        raise RuntimeError(f"the closed loop was answered with {dict(statuses)}, not all with 200")


if __name__ == "__main__":
    main()
