"""Is the quantised model faster on this machine? One layer of each is timed, whatever the size of the model."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rm_export.stages import StageRunner, split_stages, stage_model, start

TOKENS = 256
_RUNS = 9


@dataclass(frozen=True)
class LayerSpeed:
    """Milliseconds of the first layer on one row of `tokens` ids: the fastest of some runs, float and quantised."""

    tokens: int
    float_ms: float
    quantised_ms: float

    @property
    def ratio(self) -> float:
        """How many times faster the quantised layer is."""
        return self.float_ms / self.quantised_ms

    def __str__(self) -> str:
        verdict = "" if self.ratio > 1.05 else "; it is NOT faster here: prefer it for its size, or export in float"
        return (
            f"on this machine a layer takes {self.quantised_ms:.2f} ms for {self.tokens} ids, {self.float_ms:.2f} ms "
            f"in float32: {self.ratio:.1f} times the speed{verdict}"
        )


def compare_layers(
    float_model: ir.Model, quantised: ir.Model, ids: NDArray[np.int64], threads: int | None
) -> LayerSpeed:
    """Time the first layer of both graphs in ONNX Runtime on a row of ids, in turn."""
    runner = StageRunner(threads)
    sessions = []
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("float", float_model), ("quantised", quantised)):
            before, layer = split_stages(model)[:2]
            values = runner.open(before).run(start(model, ids))
            written, inputs, _ = stage_model(layer, built_in=True)
            path = Path(folder) / f"{name}.onnx"
            ir.save(written, path, external_data=f"{name}.data")
            feeds = {place: values[value] for place, value in zip(inputs, layer.inputs, strict=True)}
            sessions.append((runner.compiled(str(path)), feeds))
        best = [float("inf")] * len(sessions)
        for _ in range(_RUNS):
            for place, (session, feeds) in enumerate(sessions):
                began = time.perf_counter()
                session.run(None, feeds)
                best[place] = min(best[place], time.perf_counter() - began)
    return LayerSpeed(len(ids), *(1000 * seconds for seconds in best))
