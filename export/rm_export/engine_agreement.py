"""A compiled engine against ONNX Runtime on the same bundle and the same prompts: per output, and in decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_calibration.comparison import Flips, compare_scores
from rm_export.errors import ExportError
from rm_export.polygraphy_log import caught_log
from rm_runtime.batching import run_rows
from rm_runtime.engines import open_engine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rm_runtime.bundle import Bundle

REFERENCE = "onnxruntime"


@dataclass(frozen=True)
class EngineAgreement:
    """errors: by output, the largest and the mean absolute difference. flips: of all pairs of scores."""

    engine: str
    rows: int
    errors: Mapping[str, tuple[float, float]]
    std: float
    flips: Flips

    def lines(self) -> list[str]:
        """For the console."""
        found = [
            f"{self.engine} against {REFERENCE}, {name}: at most {largest:.3g}, on average {mean:.3g}"
            for name, (largest, mean) in self.errors.items()
        ]
        flips = self.flips
        found.append(
            f"scores of {self.rows} prompts deviate by {self.std:.3g}; {flips.flips} of {flips.pairs} pairs flip, "
            f"{flips.clear_flips} of {flips.clear_pairs} clear ones"
        )
        return found


def compare_with_onnxruntime(
    bundle: Bundle, rows: Sequence[NDArray[np.int64]], engine: str, threads: int | None, device: str | None
) -> EngineAgreement:
    """Run rows of ids in both; errors by Polygraphy's comparator, flips by our own.

    Rows that neither can score are left out. Raises ExportError if one engine scores a row that the other cannot.
    """
    pad = bundle.manifest.pad_token_id
    expected = run_rows(open_engine(bundle, REFERENCE, threads, "cpu"), rows, pad)
    measured = run_rows(open_engine(bundle, engine, threads, device), rows, pad)
    scored = ~np.isnan(expected["score"])
    if (scored != ~np.isnan(measured["score"])).any():
        raise ExportError(f"{engine} and {REFERENCE} do not score the same rows of {bundle.path}")
    expected, measured = ({name: array[scored] for name, array in side.items()} for side in (expected, measured))
    agreement = compare_scores(expected["score"].astype(np.float64), measured["score"].astype(np.float64))
    return EngineAgreement(
        engine, int(scored.sum()), _errors(expected, measured, engine), agreement.std, agreement.order
    )


def _errors(
    expected: Mapping[str, NDArray[Any]], measured: Mapping[str, NDArray[Any]], engine: str
) -> dict[str, tuple[float, float]]:
    from polygraphy.comparator import Comparator, IterationResult, RunResults, SimpleCompareFunc

    runs = RunResults()
    for name, outputs in ((REFERENCE, expected), (engine, measured)):
        runs.append((name, [IterationResult(dict(outputs), runner_name=name)]))
    with caught_log():
        accuracy = Comparator.compare_accuracy(runs, compare_func=SimpleCompareFunc(check_error_stat="max"))
    ((compared,),) = (results for of_function in accuracy for results in of_function.values())
    return {name: (float(result.max_absdiff), float(result.mean_absdiff)) for name, result in compared.items()}
