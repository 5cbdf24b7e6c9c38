"""What --engine-pool ray costs and gives on one machine: `python benchmarks/bulk_pool.py [BUNDLE] [--rows N]`.

A file of chats of realistic length (rm_runtime.bench.chats), answered by one engine of one thread in this process, then
by one and by two actors of one thread in a Ray cluster that is started for it. Seconds until the first chunk is
answered, loading and the cluster's start included, and rows a second from there on. Without BUNDLE the demo model is
used, whose rows are answered so fast that the pool's own work shows. A minute or two; wants an idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from rm_export.checkpoint import open_checkpoint
from rm_export.demo import write_demo
from rm_export.exporter import export_checkpoint
from rm_runtime.bench.chats import draw_chats
from rm_runtime.bulk.files import one_file
from rm_runtime.bulk.pool import LocalPool
from rm_runtime.bulk.ray_pool import RayPool
from rm_runtime.bulk.run import FileRun
from rm_runtime.bundle import open_bundle
from rm_runtime.loading import load

OPTIONS = {"engine": "onnxruntime", "device": None, "threads": 1}
LONGEST = 1024
"""Ids of the longest chat, by the words of the built-in ones."""


def write_chats(path: Path, rows: int) -> Path:
    """A chat with one answer a line."""
    with path.open("w") as file:
        for chat in draw_chats(rows, 1, 1.5, LONGEST, seed=0):
            answer = {"role": "assistant", "content": chat.responses[0]}
            file.write(json.dumps({"messages": [*chat.messages, answer]}) + "\n")
    return path


def figures(pool: Any, source: Path) -> tuple[float, float]:
    """Seconds to the first chunk's answers, and rows a second of the others."""
    times = [time.perf_counter()]
    run = FileRun(pool, {}, ranking=False, column_prefix="", keeps_records=False, say=print)
    output = source.with_name("answers.jsonl")
    run.answer_all([one_file(source, output)], lambda: times.append(time.perf_counter()))
    chunks = times[1:-1]  # the last call is the file's end
    rows = len(output.read_bytes().splitlines())
    per_chunk = rows / len(chunks)
    return chunks[0] - times[0], per_chunk * (len(chunks) - 1) / (chunks[-1] - chunks[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--rows", type=int, default=40 * 256)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = arguments.bundle
        if path is None:
            write_demo(folder / "checkpoint")
            path = export_checkpoint(open_checkpoint(folder / "checkpoint"), folder / "bundle")
        bundle = open_bundle(path)
        source = write_chats(folder / "chats.jsonl", arguments.rows)
        print(f"{'':24}{'first chunk, s':>16}{'rows/s':>10}{'ratio':>8}")
        baseline = 0.0
        for actors in (None, 1, 2):
            with contextlib.ExitStack() as stack:
                if actors is None:
                    pool: Any = LocalPool(lambda: load(path, **OPTIONS))
                else:
                    pool = stack.enter_context(RayPool(bundle, OPTIONS, address="local", actors=actors, say=print))
                first, rate = figures(pool, source)
            baseline = baseline or rate
            shown = "local" if actors is None else f"ray, {actors} actor{'s' * (actors > 1)}"
            print(f"{shown:24}{first:16.1f}{rate:10.1f}{rate / baseline:8.2f}", flush=True)


if __name__ == "__main__":
    main()
