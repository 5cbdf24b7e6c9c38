"""Which compiled plan may run here, what a user reads when none may, and what `auto` does then."""

from __future__ import annotations

import logging
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpoints
import fake_tensorrt
from fake_models import write_scalar_bundle
from rm_calibration.conversations import default_conversations
from rm_export.calibrate import CalibrationOptions
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_export.quantisation import Quantisation
from rm_runtime import engines
from rm_runtime.batching import run_rows
from rm_runtime.bundle import Bundle, open_bundle
from rm_runtime.engines import open_engine, tensorrt_plans
from rm_runtime.engines.tensorrt_plans import usable_plan
from rm_runtime.errors import BundleError, EngineError, RewardModelError

BUCKETS = [(4, 64)]
TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2}
"""Of the scores' standard deviation."""
PRECISIONS = ("fp32", "fp16", "int8", "w8", "w4")
QUANTISATION = Quantisation(
    examples=default_conversations()[:8],
    options=CalibrationOptions(observer="minmax", alphas=(0.5,), max_flip_rate=1.0, threads=1),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.scalar(tmp_path_factory.mktemp("plans") / "checkpoint")


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    return export_checkpoint(open_checkpoint(checkpoint), checkpoint.parent / "fp32", target="tensorrt")


def with_plans(exported: Path, tmp_path: Path, **changes: Any) -> Bundle:
    folder = Path(shutil.copytree(exported, tmp_path / "bundle"))
    fake_tensorrt.add_plans(folder, BUCKETS, **changes)
    return open_bundle(folder)


def refused(bundle: Bundle, reason: str, kind: type[RewardModelError] = EngineError) -> None:
    with pytest.raises(kind, match=reason) as caught:
        open_engine(bundle, "tensorrt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"compute_capability": "7.5"},
            r"engines for tensorrt 11\.4\.0 \(7\.5\); this GPU has compute capability 8\.9",
        ),
        ({"version": "10.9.0"}, r"engines for tensorrt 10\.9\.0 \(8\.9\); this is tensorrt 11\.4\.0"),
        ({"runtime": "tensorrt_rtx"}, r"engines for tensorrt_rtx 11\.4\.0 \(8\.9\); this is tensorrt 11\.4\.0"),
        ({"graph_sha256": "0" * 64}, r"its engines were built from another plain graph"),
        ({"graph": "prefix"}, r"has no compiled engine of its plain graph"),
    ],
)
def test_a_plan_that_was_not_built_for_what_is_here_is_refused(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str
) -> None:
    fake_tensorrt.install(monkeypatch)
    refused(with_plans(exported, tmp_path, **changes), rf"{reason}[:;] run `rm-export engine` on this machine$")


@pytest.mark.parametrize("capability", [None, "8.9", "8.6,8.9"])
def test_a_plan_for_this_gpu_among_others_is_taken(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str | None
) -> None:
    fake_tensorrt.install(monkeypatch)
    bundle = with_plans(exported, tmp_path, compute_capability=capability)
    assert usable_plan(bundle, "plain").compute_capability == capability


def test_the_gpu_that_is_asked_for_decides(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, ["7.5", "8.9"])
    bundle = with_plans(exported, tmp_path)
    assert usable_plan(bundle, "plain", device=1).file == "engines/plain.plan"
    refused(bundle, r"this GPU has compute capability 7\.5")


def test_a_bundle_without_engines_says_how_to_build_them(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    refused(open_bundle(exported), "has no compiled engine of its plain graph; run `rm-export engine`")


def test_a_tampered_plan_is_refused_before_tensorrt_reads_it(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = fake_tensorrt.install(monkeypatch)
    bundle = with_plans(exported, tmp_path)
    plan = bundle.path / "engines" / "plain.plan"
    plan.write_bytes(plan.read_bytes()[::-1])
    monkeypatch.setattr(trt, "Runtime", None)  # would be a TypeError
    refused(bundle, r"plain\.plan does not match its sha256; run `rm-export engine`", BundleError)


def test_a_plan_that_tensorrt_cannot_read_is_one_line(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = fake_tensorrt.install(monkeypatch)
    monkeypatch.setattr(trt, "_deserialised", lambda plan: None)
    refused(with_plans(exported, tmp_path), r"tensorrt 11\.4\.0 cannot read .*plain\.plan; run `rm-export engine` here")


def test_without_tensorrt_its_extra_is_named(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_tensorrt(monkeypatch)
    refused(open_bundle(exported), r"needs the package tensorrt or tensorrt_rtx, .*'rm-export\[tensorrt\]'")
    with pytest.raises(EngineError, match=r"no TensorRT is installed; pip install 'rm-export\[tensorrt\]'"):
        usable_plan(open_bundle(exported), "plain")


def without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (engines, tensorrt_plans):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name.startswith("tensorrt") else find_spec(name))


def test_without_cudas_bindings_their_extra_is_named(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    refused(open_bundle(exported), r"needs cuda-bindings; pip install 'rm-export\[tensorrt\]'")


def test_without_a_gpu_it_is_one_line(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, capabilities=())
    refused(open_bundle(exported), r"no NVIDIA GPU can be used here \(cudaErrorNoDevice\); use another engine")


def test_a_bundle_for_the_cpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    refused(open_bundle(write_scalar_bundle(tmp_path / "cpu")), "is written for cpu; export it with --target tensorrt")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_a_gpu_auto_scores_a_tensorrt_bundle_in_onnx_runtime_and_says_so(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    precision: str,
) -> None:
    fake_tensorrt.install(monkeypatch, capabilities=())
    opened = open_checkpoint(checkpoint)
    cpu, low = (
        open_bundle(
            export_checkpoint(opened, tmp_path / target, precision=asked, target=target, quantisation=QUANTISATION)
        )
        for target, asked in (("cpu", "fp32"), ("tensorrt", precision))
    )
    with caplog.at_level(logging.WARNING):
        engine = open_engine(low, threads=1)
    assert engine.name == "onnxruntime"
    assert [record.getMessage() for record in caplog.records] == [
        f"{low.path} is written for TensorRT, and no GPU can be used here: ONNX Runtime runs it"
    ]
    rows = [np.random.default_rng(seed).integers(5, 80, 20 + seed) for seed in range(40)]
    expected = run_rows(open_engine(cpu, "onnxruntime", threads=1), rows, cpu.manifest.pad_token_id)["score"]
    actual = run_rows(engine, rows, low.manifest.pad_token_id)["score"]
    if precision in TOLERANCE:
        assert np.abs(actual - expected).max() <= TOLERANCE[precision] * expected.std()
    assert np.corrcoef(actual, expected)[0, 1] > 0.9  # of random weights, in as few as 4 bits


def test_auto_says_when_it_is_tensorrt_that_is_missing(
    exported: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_tensorrt(monkeypatch)
    assert open_engine(open_bundle(exported), threads=1, share_prefixes=False).name == "onnxruntime"
    assert "no TensorRT is installed: ONNX Runtime runs it" in caplog.text


@pytest.mark.parametrize("device", [None, "cuda", "cuda:1"])
def test_auto_takes_tensorrt_on_any_gpu(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str | None
) -> None:
    fake_tensorrt.install(monkeypatch, ["8.9", "8.9"])
    assert open_engine(with_plans(exported, tmp_path), device=device).name == "tensorrt"
