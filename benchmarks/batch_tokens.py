"""How many ids a batch should hold: `python benchmarks/batch_tokens.py [--json F] [--threads N] [--folder DIR]`.

Two layers of each backbone at full width with random weights (benchmarks/full_size.py), rows of 256 ids, scored within
token budgets of 512 (two rows) to 16,384 (64 rows, all at once). Each engine in a process of its own: tokens per second
in the median round, every other round from the largest budget down, and what the process took at its peak beyond its
state before the first run, which is what a batch's activations take. With one thread, the default, CPU time is counted,
so that other work on the machine enters less. Ten minutes and more. DEFAULT_BATCH_TOKENS (rm_runtime/batching.py) and
rm_runtime/token_budget.py rest on this table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

import full_size
from engines import CALIBRATION
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_runtime.batching import run_rows
from rm_runtime.bench.worker import memory
from rm_runtime.bundle import open_bundle
from rm_runtime.engines import open_engine

BUDGETS = (512, 1024, 2048, 4096, 8192, 16384)
ROW_IDS = 256
LAYERS = 2
BACKBONES = {"Llama-3.2-1B": full_size.llama_1b, "DeBERTa-v3-large": full_size.pairrm_layers}
PRECISIONS = ("fp32", "int8")
ENGINES = ("onnxruntime", "openvino")


def print_figures(bundle: Path, engine: str, threads: int, rounds: int, budgets: Sequence[int]) -> None:
    """Tokens per second and peak bytes of every budget, as JSON."""
    clock = time.process_time if threads == 1 else time.perf_counter
    opened = open_bundle(bundle)
    running = open_engine(opened, engine, threads, share_prefixes=False)
    ids = np.random.default_rng(0).integers(5, 900, (max(budgets) // ROW_IDS, ROW_IDS))
    pad = opened.manifest.pad_token_id
    run_rows(running, list(ids[:1, :32]), pad)
    before = memory("VmRSS") or 0
    seconds: dict[int, list[float]] = {budget: [] for budget in budgets}
    peaks: dict[int, int] = {}
    for turn in range(rounds):
        for budget in budgets if turn % 2 == 0 else budgets[::-1]:
            Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew
            began = clock()
            run_rows(running, list(ids), pad, budget)
            seconds[budget].append(clock() - began)
            peaks.setdefault(budget, (memory("VmHWM") or 0) - before)
    print(json.dumps([[ids.size / median(seconds[budget]), peaks[budget]] for budget in budgets]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="ascending")
    parser.add_argument("--folder", type=Path, help="keep bundles here, or take those that are there")
    parser.add_argument("--of", nargs=2, metavar=("BUNDLE", "ENGINE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.of:
        print_figures(Path(arguments.of[0]), arguments.of[1], arguments.threads, arguments.rounds, arguments.budgets)
        return
    figures, budgets = {}, arguments.budgets
    print(f"{arguments.threads} threads; tokens/s (part of the best; peak KiB a token of the budget)")
    print(f"\n| | {' | '.join(map(str, budgets))} |\n|---|{'---|' * len(budgets)}")
    with tempfile.TemporaryDirectory() as temporary:
        for backbone, write in BACKBONES.items():
            folder = (arguments.folder or Path(temporary)) / backbone
            checkpoint = folder / "checkpoint"
            if not checkpoint.exists():
                write(checkpoint, LAYERS)
            for precision in PRECISIONS:
                bundle = folder / precision
                if not bundle.exists():
                    export_checkpoint(
                        open_checkpoint(checkpoint), bundle, precision=precision, quantisation=CALIBRATION
                    )
                for engine in ENGINES:
                    command = [sys.executable, __file__, "--of", str(bundle), engine]
                    options = ["--threads", str(arguments.threads), "--rounds", str(arguments.rounds), "--budgets"]
                    options += map(str, budgets)
                    ran = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
                    found = figures[f"{backbone} {precision} {engine}"] = json.loads(ran.stdout)
                    best = max(rate for rate, _ in found)
                    cells = [
                        f"{rate:.0f} ({rate / best:.2f}; {peak / 1024 / budget:.0f})"
                        for (rate, peak), budget in zip(found, budgets, strict=True)
                    ]
                    print(f"| {backbone}, {precision}, {engine} | {' | '.join(cells)} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
