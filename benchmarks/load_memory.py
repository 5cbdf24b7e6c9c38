"""What a loaded bundle holds in memory: `python benchmarks/load_memory.py [--layers N] [--json F] [--folder DIR]`.

A bundle of Llama-3.2-1B's shape with random weights (benchmarks/full_size.py), float32 and int8, in each engine, each
in a process of its own with one thread: load, one row of 128 ids, then the second graph with a shared prefix; and ONNX
Runtime as it runs where its packed weights do not fit into memory, from the file ("from file"). Memory is
what the process took beyond its imports, in multiples of the bundle's weights, by the kernel's own count: anonymous
memory, which is the process's alone, and mapped pages of the weights' file, which the kernel drops when it needs them
and which processes share. Peaks of anonymous memory are polled. CPU seconds of each step, and at
last of a row of 512 ids and of four rows of 64 ids behind a prefix of 256. Twenty minutes, most to make the bundles.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

import full_size
from engines import CALIBRATION
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_runtime.bench.worker import memory
from rm_runtime.bundle import open_bundle
from rm_runtime.engines import onnxruntime_engine, open_engine

PRECISIONS = ("fp32", "int8")
ENGINES = ("onnxruntime", "onnxruntime from file", "openvino")
STEPS = ("loaded", "first row", "second graph")
WARM = ("row of 512", "4 behind a prefix")
POLL_SECONDS = 0.005


def step_through(bundle: Path, engine: str) -> None:
    """Take the STEPS, then WARM runs; one line of JSON before them and after each: memory now, CPU seconds so far."""

    def tell() -> None:
        now = {key: memory(key) for key in ("RssAnon", "RssFile")}
        print(json.dumps({**now, "seconds": time.process_time()}), flush=True)

    opened = open_bundle(bundle)
    ids = np.random.default_rng(0).integers(5, 900, (1, 128))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    name, _, from_file = engine.partition(" ")
    __import__(name)
    if from_file:
        onnxruntime_engine.available_bytes = lambda: 0
    tell()
    running = open_engine(opened, name, threads=1)
    tell()
    running.run(inputs)
    tell()
    running.run({**inputs, "prefix_ids": ids[:, :64]})
    tell()
    row, own = np.tile(ids, 4), np.tile(ids[:, :64], (4, 1))
    running.run({"input_ids": row, "attention_mask": np.ones_like(row)})
    tell()
    running.run({"input_ids": own, "attention_mask": np.ones_like(own), "prefix_ids": row[:, :256]})
    tell()


def measured(bundle: Path, engine: str) -> dict[str, dict[str, float]]:
    """What each of the STEPS took, memory as multiples of the weights. Peaks are those until the step's end."""
    weights = sum(record.size for name, record in open_bundle(bundle).manifest.files.items() if name.endswith(".data"))
    command = [sys.executable, __file__, "--of", str(bundle), engine]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    seen: list[int] = []
    watch = Thread(target=_watch, args=(process, seen))
    watch.start()
    start: dict[str, Any] = json.loads(process.stdout.readline())
    found, before = {}, start
    for step in (*STEPS, *WARM):
        seen.clear()
        now = json.loads(process.stdout.readline())
        found[step] = {
            "anonymous": (now["RssAnon"] - start["RssAnon"]) / weights,
            "anonymous peak": (max([*seen, now["RssAnon"]]) - start["RssAnon"]) / weights,
            "mapped": (now["RssFile"] - start["RssFile"]) / weights,
            "seconds": now["seconds"] - before["seconds"],
        }
        before = now
    process.wait()
    watch.join()
    return found


def _watch(process: subprocess.Popen[str], seen: list[int]) -> None:
    """Note its anonymous memory in bytes until it ends."""
    while process.poll() is None:
        seen.append(memory("RssAnon", Path(f"/proc/{process.pid}/status")) or 0)
        time.sleep(POLL_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="may be repeated; all")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--folder", type=Path, help="keep bundles here, or take those that are there")
    parser.add_argument("--of", nargs=2, metavar=("BUNDLE", "ENGINE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.of:
        step_through(Path(arguments.of[0]), arguments.of[1])
        return
    figures: dict[str, Any] = {}
    print("multiples of the weights: anonymous (its peak) + mapped; CPU seconds")
    print(f"\n| | {' | '.join((*STEPS, *WARM))} |\n|---|{'---|' * (len(STEPS) + len(WARM))}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        checkpoint = folder / "checkpoint"
        if not checkpoint.exists():
            full_size.llama_1b(checkpoint, arguments.layers)
        for precision in arguments.precision or PRECISIONS:
            bundle = folder / precision
            if not bundle.exists():
                export_checkpoint(open_checkpoint(checkpoint), bundle, precision=precision, quantisation=CALIBRATION)
            for engine in ENGINES:
                found = figures[f"{precision} {engine}"] = measured(bundle, engine)
                cells = [
                    f"{of['anonymous']:.2f} ({of['anonymous peak']:.2f}) + {of['mapped']:.2f}; {of['seconds']:.1f} s"
                    for of in map(found.__getitem__, STEPS)
                ]
                cells += [f"{found[run]['seconds']:.2f} s" for run in WARM]
                print(f"| {precision}, {engine} | {' | '.join(cells)} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
