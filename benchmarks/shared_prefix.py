"""What a shared prefix saves: `python benchmarks/shared_prefix.py [--json F] [--threads N]`.

Two layers of Llama-3.2-1B at full width with random weights (benchmarks/full_size.py). Each case is scored by the same
engine with its rows in full, within the default token budget, and with their prefix shared; runs take turns and the
fastest counts. With one thread, the default, CPU time is counted, so that other work on the machine does not enter.
Then what the second graph adds to the memory of a fresh process. About five minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import full_size
from engines import CALIBRATION
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_runtime.batching import run_rows
from rm_runtime.bundle import open_bundle
from rm_runtime.engines import open_engine
from rm_runtime.engines.choice import cpu_flags

LAYERS = 2
ROUNDS = 2
CASES = {
    "best of 8, 800 + 200": (8, 800, 200),
    "two orders, 800 + 400": (2, 800, 400),
    "8 chats, 40 + 360": (8, 40, 360),
}
"""Name -> rows, ids that they share, ids of their own."""
ENGINES = {"fp32": ("onnxruntime", "openvino"), "int8": ("onnxruntime", "openvino")}


def rows_of(count: int, prefix: int, own: int) -> list[NDArray[np.int64]]:
    """Random rows that share exactly `prefix` ids."""
    rng = np.random.default_rng(0)
    shared = rng.integers(5, 900, prefix)
    return [np.concatenate([shared, [900 + row], rng.integers(5, 900, own - 1)]) for row in range(count)]


def measure(bundle: Path, engine: str, threads: int) -> dict[str, Any]:
    """Seconds of each case, in full and shared, and how far the scores differ in deviations."""
    clock = time.process_time if threads == 1 else time.perf_counter
    opened = open_bundle(bundle)
    engines = [open_engine(opened, engine, threads, share_prefixes=shares) for shares in (False, True)]
    figures: dict[str, Any] = {}
    for name, case in CASES.items():
        rows, seconds, scores = rows_of(*case), [math.inf, math.inf], []
        for _ in range(ROUNDS):
            scores = []
            for place, one in enumerate(engines):
                began = clock()
                scores.append(run_rows(one, rows, opened.manifest.pad_token_id)["score"])
                seconds[place] = min(seconds[place], clock() - began)
        error = float(np.abs(scores[0] - scores[1]).max() / scores[0].std())
        figures[name] = {"full": seconds[0], "shared": seconds[1], "error": error}
    return figures


def cell(full: float, shared: float, error: float) -> str:
    """One case's figures as the table has them."""
    return f"{1000 * full:.0f}, {1000 * shared:.0f} ({full / shared:.2f}x; {error:.0e})"


def resident_bytes() -> int:
    """Memory of this process now, file mappings included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def print_memory(bundle: Path, engine: str) -> None:
    """What opening and running the plain graph takes, and what the second one adds, in bytes, as JSON."""
    opened = open_bundle(bundle)
    before = resident_bytes()
    both = open_engine(opened, engine, threads=1)
    rows = rows_of(2, 100, 20)
    run_rows(both, rows[:1], opened.manifest.pad_token_id)
    plain = resident_bytes() - before
    run_rows(both, rows, opened.manifest.pad_token_id)
    print(json.dumps({"plain": plain, "second": resident_bytes() - before - plain}))


def memory(bundle: Path, engine: str) -> dict[str, int]:
    """`print_memory` of a fresh process."""
    command = [sys.executable, __file__, "--memory-of", str(bundle), engine]
    found: dict[str, int] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", nargs=2, metavar=("BUNDLE", "ENGINE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print_memory(Path(arguments.memory_of[0]), arguments.memory_of[1])
        return
    flags = sorted(cpu_flags() & {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"})
    figures: dict[str, Any] = {"machine": platform.platform(), "flags": flags, "threads": arguments.threads}
    print(f"{arguments.threads} threads, {' '.join(flags)}; milliseconds in full, shared (times as fast; error / std)")
    print(f"\n| | {' | '.join(CASES)} | memory: plain graph, second graph |\n|---|{'---|' * (len(CASES) + 1)}")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = open_checkpoint(full_size.llama_1b(Path(folder) / "checkpoint", LAYERS))
        for precision, engines in ENGINES.items():
            bundle = export_checkpoint(
                checkpoint, Path(folder) / precision, precision=precision, quantisation=CALIBRATION
            )
            for engine in engines:
                found, taken = measure(bundle, engine, arguments.threads), memory(bundle, engine)
                figures[f"{engine} {precision}"] = {"seconds": found, "bytes": taken}
                cells = [cell(**of) for of in found.values()]
                cells.append(", ".join(f"{size / 2**20:.0f} MiB" for size in taken.values()))
                print(f"| {engine} {precision} | {' | '.join(cells)} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
