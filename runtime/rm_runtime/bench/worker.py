"""A contender in a process of its own: it opens something that runs rows, and times what its parent asks for.

JSON lines. The parent writes {"bundle", "contender", "rows", ...} (a Subject's settings), then {"run": [row numbers]}
as often as it likes, then closes. The worker answers {"opened": {...}} or {"failure": "..."}, then {"seconds": s} each,
and {"peak_bytes": n} last. Own processes, so that peak memory is one contender's, and one that is killed ends alone.
`python -m rm_runtime.bench.worker` runs the bundle's engines; rm_export has a worker for the checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rm_runtime.errors import RewardModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Ids = NDArray[np.int64]


class Subject(Protocol):
    """What is timed."""

    @property
    def engine(self) -> str:
        """What a report calls it."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the packages that run it."""

    def run(self, rows: Sequence[Ids]) -> NDArray[np.float32]:
        """One float a row, NaN if it cannot be scored."""


@dataclass(frozen=True)
class EngineSubject:
    """A bundle in an engine, with the runtime's own batches and shared prefixes."""

    engine: str
    versions: Mapping[str, str]
    outputs: Callable[[Sequence[Ids]], Mapping[str, NDArray[np.float32]]]

    def run(self, rows: Sequence[Ids]) -> NDArray[np.float32]:
        """The first output's first value of each row."""
        first: NDArray[np.float32] = next(iter(self.outputs(rows).values())).reshape(len(rows), -1)[:, 0]
        return first


def open_engine_subject(settings: dict[str, Any]) -> Subject:
    """settings: bundle (folder), contender (an engine or "auto"), threads, device, batch_tokens, share_prefixes."""
    from rm_runtime.batching import run_rows
    from rm_runtime.bench.machine import versions_of
    from rm_runtime.bundle import open_bundle
    from rm_runtime.engines import open_engine

    bundle = open_bundle(settings["bundle"])
    common = (settings["threads"], settings["device"], settings["share_prefixes"])
    engine = open_engine(bundle, settings["contender"], *common)

    def outputs(rows: Sequence[Ids]) -> Mapping[str, NDArray[np.float32]]:
        return run_rows(engine, rows, bundle.manifest.pad_token_id, settings["batch_tokens"])

    return EngineSubject(engine.name, versions_of(engine.name.partition("-")[0]), outputs)


def serve(open_subject: Callable[[dict[str, Any]], Subject]) -> None:
    """Talk to the parent on stdin and stdout until it closes. What libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(document: dict[str, Any]) -> None:
        replies.write(json.dumps(document) + "\n")
        replies.flush()

    settings = json.loads(sys.stdin.readline())
    try:
        began = time.perf_counter()
        subject = open_subject(settings)
        load_seconds = time.perf_counter() - began
        rows = [np.array(row, np.int64) for row in settings["rows"]]
        began = time.perf_counter()
        _scored(subject, rows[:1])
        opened = {
            "engine": subject.engine,
            "versions": dict(subject.versions),
            "load_seconds": load_seconds,
            "first_row_seconds": time.perf_counter() - began,
            "loaded_bytes": memory("VmRSS"),
        }
        reply({"opened": opened})
        for line in sys.stdin:
            chosen = [rows[row] for row in json.loads(line)["run"]]
            reply({"seconds": _scored(subject, chosen)})
    except (RewardModelError, OSError, MemoryError) as error:
        reply({"failure": " ".join(str(error).split()) or type(error).__name__})
        return
    reply({"peak_bytes": memory("VmHWM")})


def memory(key: str, status: Path = Path("/proc/self/status")) -> int | None:
    """Bytes of this process by the kernel's count: "VmHWM" at its peak, "VmRSS" now; None where it does not tell."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)


def _scored(subject: Subject, rows: Sequence[Ids]) -> float:
    """Seconds for the rows. Raises RewardModelError if one has no score: its time would mean nothing."""
    began = time.perf_counter()
    scores = subject.run(rows)
    seconds = time.perf_counter() - began
    unscored = int(np.isnan(scores).sum())
    if unscored:
        raise RewardModelError(f"{subject.engine} gave no number for {unscored} of {len(rows)} rows")
    return seconds


if __name__ == "__main__":
    serve(open_engine_subject)
