"""A command in a process of its own: seconds, peak resident set, and an end before it takes the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.05
FREE_GIB = 1.5
"""The command is also killed when the machine has less than this available, unless it is small itself."""


@dataclass(frozen=True)
class Watched:
    """What a command did. failure: the reason in a line, None if it succeeded. peak_gib: the kernel's VmHWM.

    Not ru_maxrss: that counts what the parent held when it forked.
    """

    seconds: float
    peak_gib: float
    failure: str | None


def run_watched(
    command: Sequence[str], folder: Path, limit_gib: float, limit_seconds: float, free_gib: float = FREE_GIB
) -> Watched:
    """Run it with its temporary files and its output (log.txt) in `folder`; kill it beyond a limit.

    free_gib: what the machine must have left; 0 for a command that is itself too small to be what fills it.
    """
    began, killed, log, peak = time.perf_counter(), None, folder / "log.txt", 0.0
    environment = {**os.environ, "TMPDIR": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    while process.poll() is None:
        status = f"/proc/{process.pid}/status"
        peak = max(peak, _gib(status, "VmHWM"))
        resident, free = _gib(status, "VmRSS"), _gib("/proc/meminfo", "MemAvailable")
        seconds = time.perf_counter() - began
        if killed is None and (resident > limit_gib or free < free_gib or seconds > limit_seconds):
            killed = f"killed after {seconds:.0f} s at {resident:.1f} GiB, {free:.1f} GiB left on the machine"
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    failure = killed or (f"exit {process.returncode}: {_reason(log)}" if process.returncode else None)
    return Watched(time.perf_counter() - began, peak, failure)


def _gib(path: str, key: str) -> float:
    """A "key: kB" line of a file under /proc; 0 once the process has ended."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 2**20


def _reason(log: Path) -> str:
    """The last line of the output, after the place a traceback names last."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    places = [line.split(", in ")[-1] for line in lines if line.startswith("File ") and ", in " in line]
    return " in ".join([(lines or ["no output"])[-1][:300], *places[-1:]])
