"""`rm-export engine`: plans built by TensorRT-RTX, without a GPU, and put into the bundle."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import checkpoints
import fake_tensorrt
from rm_export.build import build_model
from rm_export.bundle import Silent
from rm_export.checkpoint import open_checkpoint
from rm_export.cli import main
from rm_export.engine import EngineOptions, build_engines, compile_graph
from rm_export.engine_failures import build_failure
from rm_export.engine_profiles import Bucket, parse_buckets, profiles_for
from rm_export.errors import ExportError
from rm_export.exporter import export_checkpoint
from rm_export.families import recognise
from rm_export.lowering import TARGETS, lower
from rm_export.options import Options
from rm_runtime import load
from rm_runtime.bundle import open_bundle
from rm_runtime.engines.cuda import gpu_capability

tensorrt_rtx = pytest.importorskip("tensorrt_rtx")
FOLDER = f"engines/tensorrt_rtx-{tensorrt_rtx.__version__}-any"
SMALL = EngineOptions(buckets=(Bucket(2, 32),))
PROFILES = profiles_for("plain", SMALL.buckets, 32)

BUILD = """
import sys, time
from pathlib import Path
from rm_export.bundle import Silent
from rm_export.engine import EngineOptions, build_engines
from rm_export.engine_profiles import Bucket

class Slow(Silent):
    def begin(self, what, total, unit="bytes"):
        print("begin", flush=True)
        time.sleep(600)

build_engines(Path(sys.argv[1]), EngineOptions(buckets=(Bucket(2, 32),)), Slow())
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.scalar(tmp_path_factory.mktemp("engine") / "checkpoint", num_hidden_layers=1)


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    return export_checkpoint(
        open_checkpoint(checkpoint), checkpoint.parent / "bundle", precision="fp16", target="tensorrt"
    )


@pytest.fixture(scope="module")
def built(exported: Path) -> Path:
    folder = Path(shutil.copytree(exported, exported.parent / "built"))
    assert main(["engine", str(folder), "--shapes", "1x64,2x32"]) == 0
    return folder


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def failed(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """The one line on stderr."""
    assert main([str(argument) for argument in argv]) != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert re.fullmatch(r"rm-export: error: .+", line), captured.err
    assert "defect" not in line
    return line


def test_plans_logs_and_layers_are_stored_with_their_hashes(built: Path) -> None:
    manifest = open_bundle(built, verify=True).manifest
    stored = {path.relative_to(built).as_posix() for path in (built / "engines").rglob("*") if path.is_file()}
    assert stored == {
        f"{FOLDER}/{role}.{end}" for role in ("plain", "prefix") for end in ("plan", "log", "layers.json")
    }
    assert stored <= set(manifest.files)
    assert [plan.file for plan in manifest.engines] == [f"{FOLDER}/plain.plan", f"{FOLDER}/prefix.plan"]
    for plan in manifest.engines:
        assert plan.graph_sha256 == manifest.files[manifest.graphs[plan.graph]].sha256
        assert [profile["input_ids"][2] for profile in plan.profiles] == [(2, 32), (1, 64)]
        layers = json.loads((built / FOLDER / f"{plan.graph}.layers.json").read_text())
        assert any(layer["type"] == "MATRIX_MULTIPLY" for layer in layers["parsed"])
        assert (built / FOLDER / f"{plan.graph}.log").read_text()


def test_a_bundle_with_engines_still_scores_in_onnx_runtime(built: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert load(built, engine="onnxruntime").score([chat])


def test_only_its_own_bundle_is_named_on_stdout(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", str(bundle), "--shapes", "2x32"]) == 0
    assert capfd.readouterr().out.splitlines() == [
        f"{role} engine: {bundle / FOLDER / f'{role}.plan'}" for role in ("plain", "prefix")
    ]


def test_building_again_replaces_and_other_gpus_are_kept(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "bundle"))
    build_engines(folder, replace(SMALL, capabilities=("8.9",)), Silent())
    build_engines(folder, SMALL, Silent())
    plans = open_bundle(folder, verify=True).manifest.engines
    assert [(plan.graph, plan.compute_capability) for plan in plans] == [
        ("plain", "8.9"),
        ("prefix", "8.9"),
        ("plain", None),
        ("prefix", None),
    ]
    assert [profile["input_ids"][2] for profile in plans[2].profiles] == [(2, 32)]


def test_list_tells_what_each_engine_is_for(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", str(built), "--list"]) == 0
    size = (built / FOLDER / "plain.plan").stat().st_size
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{FOLDER}/plain.plan  tensorrt_rtx {tensorrt_rtx.__version__}, any GPU, {size} bytes"
    assert "prefix.plan" in second


def test_print_trtexec_names_every_profile_of_every_graph(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--shapes", "2x32,1x64", "--builder-level", "3", "--strip", "--weight-streaming"]
    assert main(["engine", str(exported), "--print-trtexec", *argv]) == 0
    plain, prefix = map(shlex.split, capsys.readouterr().out.splitlines())
    assert plain[:4] == ["trtexec", f"--onnx={exported / 'model.onnx'}", "--stronglyTyped", "--saveEngine=plain.plan"]
    for words in (plain, prefix):
        assert [word for word in words if word.startswith("--profile=")] == ["--profile=0", "--profile=1"]
        assert {"--builderOptimizationLevel=3", "--stripWeights", "--allowWeightStreaming"} <= set(words)
    assert "--maxShapes=input_ids:2x32,attention_mask:2x32" in plain
    assert any(
        re.fullmatch(r"--maxShapes=input_ids:1x64,attention_mask:1x64,prefix_ids:1x\d+", word) for word in prefix
    )
    assert not (exported / "engines").exists()


@pytest.mark.parametrize("shapes", ["32", "0x32", "2x", "2x32,", "2x32;1x64", "axb", "-1x32"])
def test_shapes_in_another_form_are_one_line(exported: Path, capsys: pytest.CaptureFixture[str], shapes: str) -> None:
    assert "write BATCHxLENGTH, as in 32x128,8x512" in failed(capsys, "engine", exported, f"--shapes={shapes}")


def test_shapes_longer_than_the_bundles_prompts_are_one_line(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "1x999999 is longer than the bundle's prompts" in failed(capsys, "engine", exported, "--shapes=1x999999")


def test_shapes_are_sorted_by_length() -> None:
    assert parse_buckets("4x16, 2x32 ,8x8", 32) == (Bucket(8, 8), Bucket(4, 16), Bucket(2, 32))


def test_a_bundle_for_another_target_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export_checkpoint(open_checkpoint(checkpoint), tmp_path / "cpu")
    assert "is written for cpu; export it with --target tensorrt" in failed(capsys, "engine", folder)


@pytest.mark.parametrize("text", ["ada", "8", "8.9,9.0"])
def test_a_compute_capability_in_another_form_is_one_line(
    exported: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert "write it as in 8.9" in failed(capsys, "engine", exported, "--compute-capability", text)


def test_tensorrt_itself_builds_for_no_other_gpu(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    with pytest.raises(ExportError, match="only tensorrt-rtx takes --compute-capability"):
        build_engines(exported, replace(SMALL, capabilities=("8.9",)), Silent())


def test_an_operator_that_tensorrt_refuses_is_named_by_the_module_it_comes_from(
    checkpoint: Path, tmp_path: Path
) -> None:
    opened = open_checkpoint(checkpoint)
    model = build_model(recognise(opened).plan(opened, Options()), "tiny")
    refused = replace(TARGETS["tensorrt"], softmax_precision=True)  # an attribute of Attention it does not know
    ir.save(lower(model, "fp16", refused), tmp_path / "model.onnx", external_data="model.onnx.data")
    with pytest.raises(ExportError) as caught:
        compile_graph("tensorrt_rtx", tmp_path / "model.onnx", PROFILES, SMALL, Silent())
    line = str(caught.value)
    assert "does not take model.layers.0.self_attn (Attention) of model.onnx: " in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("CUDA initialization failure with error: 35", "no usable NVIDIA driver"),
        ("MyelinCheckException: graph_jit.cpp:278: CHECK(status == CUDA_SUCCESS) failed.", "no usable NVIDIA driver"),
        ("Error Code 2: OutOfMemory (Requested size was 1 bytes.)", "pass smaller --shapes, or --weight-streaming"),
        ("Internal error\nin two lines", "could not build model.onnx: Internal error in two lines"),
    ],
)
def test_what_tensorrt_says_becomes_one_line_that_says_what_to_do(message: str, reason: str) -> None:
    line = str(build_failure("tensorrt", "11.4.0", "model.onnx", [message]))
    assert reason in line
    assert "\n" not in line


def test_a_failed_build_leaves_the_bundle_as_it_was(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle.joinpath("model.prefix.onnx").write_bytes(b"\0" * bundle.joinpath("model.prefix.onnx").stat().st_size)
    before = {path: path.read_bytes() for path in bundle.rglob("*")}
    with pytest.raises(ExportError):
        build_engines(bundle, SMALL, Silent())
    assert {path: path.read_bytes() for path in bundle.rglob("*")} == before


def test_a_killed_build_leaves_the_bundle_whole_and_the_next_one_clears_up(bundle: Path) -> None:
    command, paths = [sys.executable, "-c", BUILD, str(bundle)], os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=paths) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
        os.kill(process.pid, signal.SIGKILL)
    assert list(bundle.glob(".engines.partial-*"))
    assert open_bundle(bundle, verify=True).manifest.engines == ()
    running = bundle / f".engines.partial-{os.getppid()}"
    running.mkdir()
    build_engines(bundle, SMALL, Silent())
    assert list(bundle.glob(".engines.partial-*")) == [running]
    assert len(open_bundle(bundle, verify=True).manifest.engines) == 2


@pytest.mark.parametrize(
    ("option", "flag"), [("weight_streaming", "WEIGHT_STREAMING"), ("strip", "STRIP_PLAN"), (None, None)]
)
def test_options_reach_tensorrts_builder(
    exported: Path, monkeypatch: pytest.MonkeyPatch, option: str | None, flag: str | None
) -> None:
    seen: dict[str, Any] = {}

    def caught(network: tuple[Any, Any, Any], config: Any, save_timing_cache: str | None) -> bytes:
        made = config(*network[:2])
        seen["flags"] = {
            name
            for name in ("WEIGHT_STREAMING", "STRIP_PLAN")
            if made.get_flag(getattr(tensorrt_rtx.BuilderFlag, name))
        }
        seen["level"] = made.builder_optimization_level
        seen["profiles"] = made.num_optimization_profiles
        return b"plan"

    monkeypatch.setattr("polygraphy.backend.trt.engine_bytes_from_network", caught)
    options = replace(SMALL, level=1, **({option: True} if option else {}))
    compile_graph("tensorrt_rtx", exported / "model.onnx", PROFILES * 3, options, Silent())
    assert seen == {"flags": {flag} - {None}, "level": 1, "profiles": 3}


@pytest.mark.skipif(gpu_capability() is not None, reason="with a GPU it can be stripped")
def test_a_plan_that_cannot_be_stripped_without_a_gpu_is_one_line(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no usable NVIDIA driver; build the engine on a machine with a GPU" in failed(
        capsys, "engine", bundle, "--shapes=2x32", "--strip"
    )


class Recorder(Silent):
    def __init__(self) -> None:
        self.phases: list[tuple[str, int]] = []
        self.done = 0

    def begin(self, what: str, total: int, unit: str = "bytes") -> None:
        self.phases.append((what, total))

    def advance(self, done: int) -> None:
        self.done += done


def test_progress_is_that_of_tensorrts_own_monitor(exported: Path) -> None:
    progress = Recorder()
    compile_graph("tensorrt_rtx", exported / "model.onnx", PROFILES, SMALL, progress)
    assert progress.phases
    assert all(what.startswith("TensorRT: ") and total > 0 for what, total in progress.phases)
    assert progress.done == sum(total for _, total in progress.phases)


def test_an_export_for_tensorrt_is_compiled_too_unless_told_not_to(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["scalar", "--checkpoint", str(checkpoint), "--fp16", "--target", "tensorrt", "--max-length", "64"]
    assert main([*export, "-o", str(tmp_path / "compiled")]) == 0
    assert "plain engine: " in capsys.readouterr().out
    assert {plan.graph for plan in open_bundle(tmp_path / "compiled", verify=True).manifest.engines} == {
        "plain",
        "prefix",
    }
    assert main([*export, "-o", str(tmp_path / "plain"), "--no-build-engine"]) == 0
    assert open_bundle(tmp_path / "plain").manifest.engines == ()
    assert main(["inspect", str(tmp_path / "compiled")]) == 0
    assert "plain: tensorrt_rtx" in capsys.readouterr().out
