"""`rm-runtime bench --vs hf`: the checkpoint in transformers beside the bundle's engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpoints
from rm_export import bench_worker
from rm_export.bench_worker import open_hugging_face
from rm_export.checkpoint import open_checkpoint
from rm_export.errors import ExportError
from rm_export.exporter import export_checkpoint
from rm_runtime.batching import pad_rows
from rm_runtime.bench.measure import BenchSettings, bench
from rm_runtime.bench.report_schema import report_fault
from rm_runtime.bench.rows import rows_of
from rm_runtime.bundle import open_bundle

pytest.importorskip("torch")
pytest.importorskip("transformers")

FAMILIES: dict[str, Callable[..., Path]] = {
    "armorm": checkpoints.armorm,
    "scalar": checkpoints.scalar,
    "pair-pm": checkpoints.pair_pm,
    "pairrm": checkpoints.pairrm,
}
FLOAT32 = 1e-4
"""Two float32 evaluations that sum in another order; hidden states behind a norm are about 1."""
BFLOAT16 = 0.2
"""bfloat16 rounds to 2^-9, in every operation of a few layers."""


@pytest.fixture(params=FAMILIES)
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    checkpoint = open_checkpoint(FAMILIES[request.param](tmp_path / "checkpoint"))
    return export_checkpoint(checkpoint, tmp_path / "bundle", family=request.param)


def settings_of(bundle: Path, contender: str, **changes: Any) -> dict[str, Any]:
    common = {"bundle": str(bundle), "contender": contender, "checkpoint": None, "threads": 1, "batch_rows": 3}
    return {**common, **changes}


def test_the_reference_takes_rows_in_the_order_they_come_a_batch_at_a_time(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, batches = open_hugging_face(settings_of(bundle, "hf-float32")), []
    rows = rows_of(open_bundle(bundle), 7, seed=0).ids
    monkeypatch.setattr(
        bench_worker, "pad_rows", lambda batch, pad: batches.append([len(row) for row in batch]) or pad_rows(batch, pad)
    )
    subject.run(rows)
    lengths = [len(row) for row in rows]
    assert batches == [lengths[:3], lengths[3:6], lengths[6:]]


def test_every_family_runs_in_both_precisions_and_a_row_does_not_depend_on_its_batch(bundle: Path) -> None:
    rows = rows_of(open_bundle(bundle), 7, seed=0).ids
    float32 = open_hugging_face(settings_of(bundle, "hf-float32"))
    values = float32.run(rows)
    assert values.shape == (7,)
    assert np.std(values) > 100 * FLOAT32
    np.testing.assert_allclose(np.concatenate([float32.run([row]) for row in rows]), values, rtol=0, atol=FLOAT32)
    bfloat16 = open_hugging_face(settings_of(bundle, "hf-bfloat16"))
    assert "bfloat16" in bfloat16.engine
    assert set(bfloat16.versions) == {"torch", "transformers"}
    lowered = bfloat16.run(rows)
    assert not np.array_equal(lowered, values)
    np.testing.assert_allclose(lowered, values, rtol=0, atol=BFLOAT16 * np.abs(values).max())


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    bundle = export_checkpoint(open_checkpoint(checkpoints.scalar(tmp_path / "one")), tmp_path / "bundle")
    other = checkpoints.armorm(tmp_path / "other")
    with pytest.raises(ExportError, match=r"was not made from .*other"):
        open_hugging_face(settings_of(bundle, "hf-float32", checkpoint=str(other)))


def test_a_benchmark_against_transformers_measures_both_on_the_same_rows(tmp_path: Path) -> None:
    checkpoint = checkpoints.scalar(tmp_path / "checkpoint")
    bundle = export_checkpoint(open_checkpoint(checkpoint), tmp_path / "bundle")
    settings = BenchSettings(("onnxruntime",), "hf", ("offline",), queries=3, warmup=0, rounds=1, threads=1)
    report = bench(bundle, settings)
    assert report_fault(report) is None
    assert [(one["name"], one["reference"], one["failure"]) for one in report["contenders"]] == [
        ("onnxruntime", False, None),
        ("hf-float32", True, None),
        ("hf-bfloat16", True, None),
    ]
    assert all(one["offline"]["seconds"] > 0 for one in report["contenders"])


def test_a_checkpoint_that_is_gone_fails_the_reference_alone(tmp_path: Path) -> None:
    bundle = export_checkpoint(open_checkpoint(checkpoints.scalar(tmp_path / "checkpoint")), tmp_path / "bundle")
    (tmp_path / "checkpoint").rename(tmp_path / "moved")
    settings = BenchSettings(("onnxruntime",), "hf", ("offline",), queries=1, warmup=0, rounds=1, threads=1)
    ours, *references = bench(bundle, settings)["contenders"]
    assert ours["failure"] is None
    for reference in references:
        assert reference["failure"].startswith(f"{reference['name']}: ")
        assert "checkpoint" in reference["failure"]
