"""Does `rm-runtime score` take memory by the line? `python benchmarks/stream_memory.py BUNDLE [--lines N ...]`.

Files of built-in chats of that many lines, each scored in a process of its own; its time and peak resident set.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path

from rm_runtime.bench.chats import draw_chats
from watched import run_watched

PROGRAM = "import sys; from rm_runtime.cli import main; sys.exit(main())"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--lines", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--longest", type=int, default=100, help="words a chat may have")
    arguments = parser.parse_args()
    lines = [
        json.dumps({"messages": [*chat.messages, {"role": "assistant", "content": chat.responses[0]}]}) + "\n"
        for chat in draw_chats(500, 1, 1.0, arguments.longest, seed=0)
    ]
    print("| lines | file | time | lines/s | peak memory |\n|---|---|---|---|---|")
    for count in arguments.lines:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "in.jsonl"
            with source.open("w", encoding="utf-8") as file:
                file.writelines(itertools.islice(itertools.cycle(lines), count))
            command = [sys.executable, "-c", PROGRAM, "score", arguments.bundle, "-i", str(source), "-o", "/dev/null"]
            ran = run_watched(
                [*command, "--threads", "1"], Path(folder), limit_gib=1, limit_seconds=4 * 3600, free_gib=0
            )
            size = f"{source.stat().st_size / 1e6:.0f} MB"
            rate = "" if ran.failure else f"{count / ran.seconds:.0f}"
            peak = ran.failure or f"{ran.peak_gib:.3f} GiB"
            print(f"| {count} | {size} | {ran.seconds:.1f} s | {rate} | {peak} |", flush=True)


if __name__ == "__main__":
    main()
