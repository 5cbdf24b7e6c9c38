"""Is the quantised model faster on this machine? One layer of each is timed, whatever the size of the model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rm_export.stage_runner import StageRunner, start
from rm_export.stages import split_stages
from rm_export.tensors import StreamedTensor

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


def compare_layers(float_model: ir.Model, quantised: Path, ids: NDArray[np.int64], threads: int | None) -> LayerSpeed:
    """Time the first layer of a graph and of a quantised file of it in ONNX Runtime, in turn.

    ids: a row; at most 256 of it count.
    """
    row = ids[:TOKENS]
    with tempfile.TemporaryDirectory() as folder:
        sessions = [
            _first_layer(_with_stored_layer(float_model, Path(folder)), Path(folder), row, threads),
            _first_layer(ir.load(quantised), quantised.parent, row, threads),
        ]
        best = [float("inf")] * len(sessions)
        for _ in range(_RUNS):
            for place, run in enumerate(sessions):
                began = time.perf_counter()
                run()
                best[place] = min(best[place], time.perf_counter() - began)
    return LayerSpeed(len(row), *(1000 * seconds for seconds in best))


def _first_layer(model: ir.Model, folder: Path, row: NDArray[np.int64], threads: int | None) -> Callable[[], object]:
    """The first layer of a model whose weights lie in files of `folder`, ready to run on the row."""
    runner = StageRunner(threads, folder)
    before, layer = (runner.open(stage) for stage in split_stages(model)[:2])
    (state,) = start(model, [[row]])
    state = before.after(state, before.run(state))
    return lambda: layer.run(state)


def _with_stored_layer(model: ir.Model, folder: Path) -> ir.Model:
    """The model with its first layer's weights in a file, where an engine maps and packs them as a bundle's."""
    layer = split_stages(model)[1]
    with (folder / "layer.data").open("xb") as file:
        for value in layer.weights:
            tensor = value.const_value
            assert isinstance(tensor, StreamedTensor)
            offset = file.tell()
            tensor.tofile(file)
            value.const_value = ir.ExternalTensor(
                "layer.data", offset, file.tell() - offset, tensor.dtype, shape=tensor.shape, name="", base_dir=folder
            )
    return model
