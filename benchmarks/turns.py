"""Contenders take turns on the same ids: what the benchmarks of speed share.

The fastest round counts. With one thread CPU time is counted, so that other work on the machine does not enter; with
more threads wall time, which wants an idle machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rm_runtime.bundle import open_bundle
from rm_runtime.engines import open_engine
from rm_runtime.engines.choice import cpu_flags

Ids = NDArray[np.int64]
Run = Callable[[Ids], Any]
Clock = Callable[[], float]

SHAPES = ((1, 128), (1, 512), (4, 512))
ROUNDS = 2
ROUND_SECONDS = 0.3
"""A round repeats a run for at least so long."""


def hugging_face(model: Any) -> Run:
    """A transformers model on unpadded rows; its output as it is."""

    def run(ids: Ids) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(ids), attention_mask=torch.ones(ids.shape, dtype=torch.int64))

    return run


def exported(bundle: Path, engine: str, threads: int) -> Run:
    """A bundle on unpadded rows; its outputs by name."""
    opened = open_engine(open_bundle(bundle), engine, threads)
    return lambda ids: opened.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})


def clock_for(threads: int) -> Clock:
    """Seconds of CPU time for one thread, of wall time for more."""
    return time.process_time if threads == 1 else time.perf_counter


def fastest(runs: Mapping[str, Run], ids: Ids, clock: Clock) -> dict[str, float]:
    """Seconds of each run in its fastest round, after one that warms it up."""
    best = dict.fromkeys(runs, math.inf)
    for run in runs.values():
        run(ids)
    for _ in range(ROUNDS):
        for name, run in runs.items():
            began, repeats = clock(), 0
            while clock() < began + ROUND_SECONDS:
                run(ids)
                repeats += 1
            best[name] = min(best[name], (clock() - began) / repeats)
    return best


def measured_flags() -> list[str]:
    """The instruction sets of this CPU that decide how fast integers and bfloat16 are."""
    return sorted(cpu_flags() & {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"})
