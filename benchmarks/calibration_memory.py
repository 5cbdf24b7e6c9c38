"""Peak memory and time of a full-size int8 export: `python benchmarks/calibration_memory.py [--tokens N] [--json F]`.

ArmoRM's 8B shape as a sparse file (benchmarks/full_size.py): all work is done, on weights that are zero. The export
runs in a process of its own, its peak resident set is the kernel's, its phases are those that `rm-export` shows. The
bundle needs 8 GB on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import full_size

SHAPES = {"armorm-8b": (full_size.armorm_8b, "armorm"), "grm-3b": (full_size.grm_3b, "grm")}


class Phases:
    """A Progress that keeps when each phase began, and says on stderr how far it is."""

    def __init__(self) -> None:
        self.began: list[tuple[str, float]] = []
        self._done = 0

    def begin(self, what: str, total: int, unit: str = "bytes") -> None:
        self.began.append((what, time.perf_counter()))
        self._done = 0
        print(f"{what}: {total} {unit}", file=sys.stderr, flush=True)

    def advance(self, done: int) -> None:
        self._done += done
        if done == 1:
            seconds = time.perf_counter() - self.began[-1][1]
            print(f"{self._done} after {seconds:.0f} s", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase; the last ends now."""
        ends = [began for _, began in self.began[1:]] + [time.perf_counter()]
        return {what: end - began for (what, began), end in zip(self.began, ends, strict=True)}


def export_once(shape: str, tokens: int | None, folder: Path) -> dict[str, object]:
    """Export in this process."""
    from rm_export.calibrate import CalibrationOptions
    from rm_export.checkpoint import open_checkpoint
    from rm_export.exporter import export_checkpoint
    from rm_export.quantisation import Quantisation
    from rm_runtime.bundle import open_bundle

    make, family = SHAPES[shape]
    checkpoint, phases = open_checkpoint(make(folder / "checkpoint")), Phases()
    began = time.perf_counter()
    output = export_checkpoint(
        checkpoint,
        folder / "bundle",
        family=family,
        precision="int8",
        quantisation=Quantisation(options=CalibrationOptions(max_tokens=tokens)),
        progress=phases,
    )
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "phases": phases.seconds(),
        "bytes": sum(path.stat().st_size for path in output.iterdir()),
        "peak_rss_GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "parity": open_bundle(output).manifest.parity,
        "cpus": len(os.sched_getaffinity(0)),
        "tokens a side": tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="armorm-8b")
    parser.add_argument("--tokens", type=int, help="ids to calibrate on, and as many to judge on")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(export_once(arguments.shape, arguments.tokens, arguments.one)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        command = [sys.executable, __file__, "--shape", arguments.shape, "--one", folder]
        command += ["--tokens", str(arguments.tokens)] if arguments.tokens else []
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row = json.loads(answer.stdout)
    print(
        f"{arguments.shape} int8: {row['bytes'] / 1e9:.2f} GB, peak {row['peak_rss_GiB']:.2f} GiB, "
        f"{row['seconds']:.0f} s"
    )
    for phase, seconds in row["phases"].items():
        print(f"  {phase:20} {seconds:6.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(row, indent=2) + "\n")


if __name__ == "__main__":
    main()
