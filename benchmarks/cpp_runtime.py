"""Time to load a bundle and to score chats: rm_score (C++) against `rm-runtime score`, in turns on the same lines.

    python benchmarks/cpp_runtime.py BUNDLE [--program build/rm_score/rm_score] [--chats 200] [--rounds 5]
        [--no-share-prefixes] [--json F]

Whole processes with one thread of ONNX Runtime each, from start to exit: with no line (load) and with all lines (load
and score), in wall and CPU time. The program is built in build/cpp/release if none is given. Medians over the rounds;
ratios are Python's over C++'s.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

Seconds = dict[str, dict[str, list[tuple[float, float]]]]
TESTS = Path(__file__).parent.parent / "tests"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--program", type=Path)
    parser.add_argument("--chats", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-share-prefixes", action="store_true", help="of Python's; C++ shares none")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    from conversations import conversations

    chats = conversations(arguments.chats, special_text=False)
    lines = "".join(f"{json.dumps({'messages': chat})}\n" for chat in chats).encode()
    contenders = {
        "c++": [str(arguments.program or released()), str(arguments.bundle), "--threads", "1"],
        "python": [
            *(sys.executable, "-c", "import sys, rm_runtime.cli; sys.exit(rm_runtime.cli.main())", "score"),
            *(str(arguments.bundle), "--threads", "1", "--engine", "onnxruntime"),
            *(["--no-share-prefixes"] if arguments.no_share_prefixes else []),
        ],
    }
    seconds: Seconds = {name: {"load": [], "load and score": []} for name in contenders}
    for _ in range(arguments.rounds + 1):  # the first warms the file cache up
        for name, command in contenders.items():
            seconds[name]["load"].append(timed(command, b""))
            seconds[name]["load and score"].append(timed(command, lines))
    report = summary(seconds, arguments.chats)
    for row in report["rows"]:
        print(
            f"{row['what']:>14}, {row['clock']:>4}: c++ {row['c++']:.2f} s, python {row['python']:.2f} s, "
            f"ratio {row['ratio']:.2f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def summary(seconds: Seconds, chats: int) -> dict[str, Any]:
    rows = []
    for clock, place in (("wall", 0), ("cpu", 1)):
        medians = {
            name: {what: statistics.median(time[place] for time in times[1:]) for what, times in of.items()}
            for name, of in seconds.items()
        }
        for of in medians.values():
            of["score"] = of["load and score"] - of["load"]
        for what in ("load", "score", "load and score"):
            ours, python = medians["c++"][what], medians["python"][what]
            rows.append({"what": what, "clock": clock, "c++": ours, "python": python, "ratio": python / ours})
    return {"chats": chats, "rows": rows, "seconds": seconds}


def released() -> Path:
    import cpp_builds

    options = [f"-DONNXRUNTIME_ROOT={cpp_builds.onnxruntime_root()}", "-DCMAKE_BUILD_TYPE=Release"]
    return cpp_builds.built("release", cpp_builds.SOURCE, options) / "rm_score"


def timed(command: list[str], lines: bytes) -> tuple[float, float]:
    """Wall and CPU seconds of a process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, input=lines, capture_output=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.count(b"\n") == lines.count(b"\n"), done.stderr.decode()
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
