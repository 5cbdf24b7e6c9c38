"""Peak memory and speed of exporting full-size checkpoints: `python benchmarks/export_memory.py [--json F]`.

Each export runs in a process of its own; its peak resident set is the kernel's (ru_maxrss). The checkpoints are sparse
files (benchmarks/full_size.py), so reading costs no disk; the written bundle is real and needs its size on the disk.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import full_size

CASES = {
    "armorm-8b fp16": (full_size.armorm_8b, "armorm", "fp16"),
    "grm-3b fp16": (full_size.grm_3b, "grm", "fp16"),
    "pairrm fp32": (full_size.pairrm, "pairrm", "fp32"),
    "pairrm fp16": (full_size.pairrm, "pairrm", "fp16"),
}


def export_once(checkpoint: Path, family: str, precision: str, output: Path) -> dict[str, float]:
    """Export in this process and tell seconds, bytes written and the peak resident set."""
    from rm_export.checkpoint import open_checkpoint
    from rm_export.exporter import export_checkpoint

    began = time.perf_counter()
    export_checkpoint(open_checkpoint(checkpoint), output, family=family, precision=precision)
    seconds = time.perf_counter() - began
    written = sum(path.stat().st_size for path in output.iterdir())
    return {
        "seconds": seconds,
        "bytes": written,
        "MB/s": written / 1e6 / seconds,
        "peak_rss_GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="only these (default: all)")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        checkpoint, family, precision, output = arguments.one
        print(json.dumps(export_once(Path(checkpoint), family, precision, Path(output))))
        return
    figures = {}
    for case in arguments.case or CASES:
        make, family, precision = CASES[case]
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            checkpoint = make(Path(folder) / "checkpoint")
            command = [
                sys.executable,
                __file__,
                "--one",
                str(checkpoint),
                family,
                precision,
                f"{folder}/bundle",
            ]
            answer = subprocess.run(command, check=True, capture_output=True, text=True)
            figures[case] = json.loads(answer.stdout)
            shutil.rmtree(Path(folder) / "bundle")
        row = figures[case]
        print(
            f"{case:16} {row['bytes'] / 1e9:6.2f} GB  {row['seconds']:6.1f} s  {row['MB/s']:6.0f} MB/s  "
            f"peak {row['peak_rss_GiB']:.2f} GiB",
            flush=True,
        )
    if arguments.json:
        machine = {"python": platform.python_version(), "machine": platform.machine(), "figures": figures}
        arguments.json.write_text(json.dumps(machine, indent=2) + "\n")


if __name__ == "__main__":
    main()
