"""A compiled engine compared with ONNX Runtime on a bundle's own prompts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import checkpoints
import fake_tensorrt
from rm_calibration.conversations import default_conversations
from rm_export import engine_agreement
from rm_export.checkpoint import open_checkpoint
from rm_export.errors import ExportError
from rm_export.exporter import export_checkpoint
from rm_export.verify import compare_engines
from rm_runtime.engines import Arrays, Engine, open_engine
from rm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine

EXAMPLES = default_conversations()[:12]
BUCKETS = [(8, 512), (2, 4096)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agreement")
    checkpoint = open_checkpoint(checkpoints.armorm(folder / "checkpoint"))
    return export_checkpoint(checkpoint, folder / "bundle", precision="fp16", target="tensorrt")


@pytest.fixture
def bundle(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(exported, tmp_path / "bundle"))
    fake_tensorrt.add_plans(folder, BUCKETS)
    fake_tensorrt.install(monkeypatch)
    return folder


def test_every_output_is_compared_and_equal_engines_flip_nothing(bundle: Path) -> None:
    agreement = compare_engines(bundle, EXAMPLES, engine="tensorrt", threads=1)
    assert set(agreement.errors) == {"score", "rewards", "gating", "coefficients"}
    # the same arithmetic, batched otherwise
    assert all(largest <= 1e-2 * agreement.std for largest, _ in agreement.errors.values())
    assert agreement.flips.pairs > 100
    assert agreement.flips.clear_flips == 0
    assert [line.split(":")[0] for line in agreement.lines()[:-1]] == [
        f"tensorrt against onnxruntime, {name}" for name in agreement.errors
    ]


class Shifted:
    """An engine whose scores are off by 1, and whose first row of a batch may be lost."""

    name = "tensorrt"

    def __init__(self, engine: Engine, lost: bool) -> None:
        self._engine, self._lost = engine, lost

    def run(self, inputs: Arrays) -> Arrays:
        outputs = self._engine.run(inputs)
        score = outputs["score"] + np.float32(1)
        score[: int(self._lost)] = np.nan
        return outputs | {"score": score}


def replaced(monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    def opened(bundle: object, engine: str, *arguments: object) -> object:
        plain = open_engine(bundle, "onnxruntime", 1, "cpu", share_prefixes=False)
        assert isinstance(plain, OnnxRuntimeEngine)
        return plain if engine == "onnxruntime" else Shifted(plain, lost)

    monkeypatch.setattr(engine_agreement, "open_engine", opened)


def test_an_engine_that_is_off_is_told_by_how_much(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, lost=False)
    largest, mean = compare_engines(bundle, EXAMPLES, engine="tensorrt").errors["score"]
    assert largest == pytest.approx(1, rel=1e-3)
    assert mean == pytest.approx(1, rel=1e-3)


def test_rows_that_only_one_of_them_scores_are_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, lost=True)
    with pytest.raises(ExportError, match="tensorrt and onnxruntime do not score the same rows"):
        compare_engines(bundle, EXAMPLES, engine="tensorrt")
