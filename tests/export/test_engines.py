"""The engines decide alike: every family's bundle has the same scores in OpenVINO as in ONNX Runtime.

float32: 1e-4 of the scores' deviation, as between any two correct float32 programs, and no pair ordered differently.
int8: a value beside the middle of two steps is rounded the other way by an engine that adds in another order, and later
layers quantise that again; what counts is that at most 0.5 % of the clear preferences differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

import checkpoints
from rm_calibration.comparison import Agreement, compare_scores
from rm_calibration.conversations import default_conversations
from rm_export.calibrate import CalibrationOptions
from rm_export.checkpoint import Checkpoint, open_checkpoint
from rm_export.demo import checkpoint_path
from rm_export.exporter import export_checkpoint
from rm_export.quantisation import Quantisation
from rm_export.questions import encode_questions, questions_of
from rm_runtime.batching import run_rows
from rm_runtime.bundle import Bundle, open_bundle
from rm_runtime.engines import open_engine
from rm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from rm_runtime.prompt_spec import ChatPrompt
from rm_runtime.prompts import Prompt

EXAMPLES = default_conversations()
QUANTISATION = Quantisation(examples=EXAMPLES[:16], options=CalibrationOptions(threads=1))
ROWS = 200
NONE_TOKEN_ID = 5

MAKERS: dict[str, Callable[[Path], Path]] = {
    "demo": lambda folder: checkpoint_path(),
    "armorm": checkpoints.armorm,
    "grm": checkpoints.grm,
    "grm-gemma2": lambda folder: checkpoints.grm(folder, backbone="gemma2"),
    "pair-pm": checkpoints.pair_pm,
    "pairrm": checkpoints.pairrm,
    "dpa-rm": checkpoints.dpa_rm,
    "scalar-gemma": lambda folder: checkpoints.scalar(folder, backbone="gemma"),
    "scalar-qwen2": lambda folder: checkpoints.scalar(folder, backbone="qwen2"),
    "scalar-qwen3": lambda folder: checkpoints.scalar(folder, backbone="qwen3"),
    "scalar-mistral": lambda folder: checkpoints.scalar(folder, backbone="mistral", sliding_window=24),
}


@pytest.fixture(scope="module", params=MAKERS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(MAKERS[request.param](tmp_path_factory.mktemp("engines") / "checkpoint"))


def exported(checkpoint: Checkpoint, folder: Path, precision: str) -> Bundle:
    return open_bundle(export_checkpoint(checkpoint, folder, precision=precision, quantisation=QUANTISATION))


def rows_of(bundle: Bundle) -> list[NDArray[np.int64]]:
    """Ids of the built-in conversations, long and short."""
    spec = bundle.manifest.prompt
    questions = questions_of(EXAMPLES, pairwise=not isinstance(spec, ChatPrompt))
    prompts = encode_questions(spec, bundle.tokenizer(), EXAMPLES, questions)
    rows = [np.asarray(prompt.ids, np.int64) for prompt in prompts if isinstance(prompt, Prompt)]
    return rows[:: max(1, len(rows) // ROWS)]


def run(bundle: Bundle, engine: str, rows: list[NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
    return run_rows(open_engine(bundle, engine, threads=1), rows, bundle.manifest.pad_token_id)


def agreement(bundle: Bundle, engine: str) -> Agreement:
    rows = rows_of(bundle)
    expected, measured = (run(bundle, name, rows)["score"] for name in ("onnxruntime", engine))
    assert np.isfinite(expected).all()
    assert len(rows) >= ROWS
    return compare_scores(expected.astype(np.float64), measured.astype(np.float64))


def test_float32_outputs_of_every_family_are_the_same_in_both_engines(checkpoint: Checkpoint, tmp_path: Path) -> None:
    bundle = exported(checkpoint, tmp_path / "bundle", "fp32")
    rows = rows_of(bundle)
    expected, measured = (run(bundle, engine, rows) for engine in ("onnxruntime", "openvino"))
    assert set(measured) == set(expected)
    for name, values in expected.items():
        assert measured[name].dtype == np.float32
        error = np.abs(measured[name] - values).max(axis=0)
        assert (error <= 1e-4 * values.std(axis=0)).all(), f"{name}: {error / values.std(axis=0)}"
    assert compare_scores(expected["score"], measured["score"]).order.flips == 0


def test_int8_decides_clear_preferences_alike_in_both_engines(checkpoint: Checkpoint, tmp_path: Path) -> None:
    order = agreement(exported(checkpoint, tmp_path / "bundle", "int8"), "openvino").order
    assert order.clear_pairs > 10_000
    assert order.clear_flips <= 0.005 * order.clear_pairs


def test_float16_scores_of_openvino_are_within_a_hundredth_of_a_deviation(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    rows = rows_of(single := exported(checkpoint, tmp_path / "single", "fp32"))
    expected = run(single, "onnxruntime", rows)["score"]
    measured = run(exported(checkpoint, tmp_path / "half", "fp16"), "openvino", rows)["score"]
    assert np.abs(measured - expected).max() <= 1e-2 * expected.std()


def test_a_row_that_cannot_be_scored_is_nan_and_its_neighbours_are_not(checkpoint: Checkpoint, tmp_path: Path) -> None:
    bundle = exported(checkpoint, tmp_path / "bundle", "fp32")
    good = min(rows_of(bundle), key=len)
    ids, mask = np.tile(good, (4, 1)), np.ones((4, len(good)), np.int64)
    mask[1, 1] = 0  # a hole: not right-padded
    mask[2] = 0  # no token
    inputs = {"input_ids": ids, "attention_mask": mask}
    outputs = {engine: open_engine(bundle, engine, threads=1).run(inputs) for engine in ("onnxruntime", "openvino")}
    for name, values in outputs["openvino"].items():
        missing = np.isnan(values.reshape(4, -1))
        assert missing[[1, 2]].all(), name
        assert not missing[[0, 3]].any(), name
        np.testing.assert_array_equal(np.isnan(values), np.isnan(outputs["onnxruntime"][name]))


@pytest.mark.parametrize("make", [checkpoints.armorm, checkpoints.pairrm], ids=["no gate token", "no prefix token"])
def test_a_row_without_the_tokens_its_family_reads_is_nan(make: Callable[[Path], Path], tmp_path: Path) -> None:
    bundle = exported(open_checkpoint(make(tmp_path / "checkpoint")), tmp_path / "bundle", "fp32")
    ids = np.full((1, 12), NONE_TOKEN_ID, np.int64)
    outputs = open_engine(bundle, "openvino", threads=1).run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert all(np.isnan(values).all() for values in outputs.values())


def test_the_demos_int8_order_is_the_same_but_for_one_pair_in_200(tmp_path: Path) -> None:
    order = agreement(exported(open_checkpoint(checkpoint_path()), tmp_path / "bundle", "int8"), "openvino").order
    assert order.flips <= 0.005 * order.pairs


@pytest.mark.parametrize("precision", ["w8", "w4"])
def test_openvino_computes_weight_only_bundles_as_they_are_written(tmp_path: Path, precision: str) -> None:
    bundle = exported(open_checkpoint(checkpoint_path()), tmp_path / "bundle", precision)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    as_written = OnnxRuntimeEngine(onnxruntime.InferenceSession(str(bundle.graph_path()), options))
    rows = rows_of(bundle)[:40]
    expected = run_rows(as_written, rows, bundle.manifest.pad_token_id)["score"]
    assert np.abs(run(bundle, "openvino", rows)["score"] - expected).max() <= 1e-4 * expected.std()
