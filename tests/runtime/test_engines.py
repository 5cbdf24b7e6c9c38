"""Engines by name: which one `auto` takes, and what a user reads when one cannot run."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import openvino
import pytest

from fake_models import write_scalar_bundle
from rm_runtime import EngineError, engines, load
from rm_runtime.bundle import Bundle, open_bundle
from rm_runtime.engines import ENGINES, open_engine, openvino_engine
from rm_runtime.engines.choice import cpu_flags, preferred
from rm_runtime.engines.failures import load_failure, run_failure
from rm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from rm_runtime.engines.openvino_engine import OpenVinoEngine

IDS = np.array([[10, 20, 30], [40, 50, 0]])
INPUTS = {"input_ids": IDS, "attention_mask": np.array([[1, 1, 1], [1, 1, 0]])}
SCORES = [0.02, 0.045]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(write_scalar_bundle(tmp_path / "bundle"))


def only_installed(monkeypatch: pytest.MonkeyPatch, packages: Collection[str]) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: find_spec(name) if name in packages else None)


@pytest.mark.parametrize("engine", ["auto", *(name for name in ENGINES if name != "tensorrt")])  # its own dialect
def test_every_engine_runs_the_same_bundle_at_any_shape(bundle: Bundle, engine: str) -> None:
    if engine == "openvino-bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16")
    opened = open_engine(bundle, engine, threads=1)
    assert engine in (opened.name, "auto")
    tolerance = 1e-2 if engine == "openvino-bf16" else 1e-6  # 8 bits of mantissa
    for width in (2, 1, 3):
        inputs = {name: values[:, :width] for name, values in INPUTS.items()}
        means = (inputs["input_ids"] * inputs["attention_mask"]).sum(1) / inputs["attention_mask"].sum(1) / 1000
        np.testing.assert_allclose(opened.run(inputs)["score"], means, rtol=tolerance)


def test_importing_the_runtime_and_opening_a_bundle_imports_no_engine(bundle: Bundle) -> None:
    program = (
        "import sys, rm_runtime, rm_runtime.engines; from rm_runtime.bundle import open_bundle;"
        f"open_bundle({str(bundle.path)!r});"
        "print([m for m in ('onnxruntime', 'openvino') if m in sys.modules])"
    )
    path = [str(Path(engines.__file__).parents[2])]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path}; {program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"


def test_an_engine_that_is_not_installed_names_its_extra(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    only_installed(monkeypatch, ["onnxruntime"])
    with pytest.raises(
        EngineError, match=r"openvino needs the package openvino, .*; pip install 'rm-export\[openvino\]'"
    ):
        open_engine(bundle, "openvino")


def test_with_no_engine_installed_the_extras_are_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    only_installed(monkeypatch, [])
    with pytest.raises(EngineError, match=r"'rm-export\[cpu\]' or pip install 'rm-export\[openvino\]' or "):
        open_engine(bundle)


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_auto_takes_the_only_engine_that_is_installed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    only_installed(monkeypatch, [package])
    assert open_engine(bundle, threads=1).name == package


@pytest.mark.parametrize("engine", ["openvino", "openvino-bf16"])
def test_openvino_refuses_a_gpu_in_one_line(bundle: Bundle, engine: str) -> None:
    with pytest.raises(EngineError, match=r"runs on cpu, not on 'cuda:1'; onnxruntime runs on cuda too"):
        open_engine(bundle, engine, device="cuda:1")


def test_bfloat16_is_refused_by_a_cpu_without_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldCore:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino_engine.openvino, "Core", OldCore)
    with pytest.raises(EngineError, match="no bfloat16 instructions"):
        open_engine(bundle, "openvino-bf16")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_graph_that_cannot_be_read_is_one_line_that_names_it(bundle: Bundle, engine: str) -> None:
    bundle.graph_path().write_bytes(b"\x00\x01 not a graph")
    with pytest.raises(EngineError, match=r"cannot load .*model\.onnx: \S") as caught:
        open_engine(bundle, engine)
    assert "\n" not in str(caught.value)
    assert ".cpp" not in str(caught.value)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_wrong_inputs_are_an_engine_error_in_one_line(bundle: Bundle, engine: str) -> None:
    with pytest.raises(EngineError, match="attention_mask") as caught:
        open_engine(bundle, engine).run({"input_ids": IDS})
    assert "\n" not in str(caught.value)


class FakeRequest:
    """What OpenVINO's request does when it fails: raises, or with one thread leaves its outputs empty."""

    def __init__(self, outcome: Exception | None) -> None:
        self.outcome = outcome

    def infer(self, inputs: Any, share_inputs: bool) -> dict[Any, Any]:
        if self.outcome is not None:
            raise self.outcome
        return {"score": np.empty(0, np.float32)}


class FakePort(str):
    any_name = property(str)


class BrokenModel:
    """A compiled model whose every run fails."""

    inputs = tuple(map(FakePort, INPUTS))
    outputs = (FakePort("score"),)

    def __init__(self, outcome: Exception | None) -> None:
        self.outcome = outcome

    def create_infer_request(self) -> FakeRequest:
        return FakeRequest(self.outcome)


@pytest.mark.parametrize(
    "outcome",
    [None, RuntimeError("Check 'ptr' failed at src/a.cpp:257:\nFailed to allocate 256 bytes of memory"), MemoryError()],
)
def test_a_run_without_memory_says_so_even_where_openvino_does_not(outcome: Exception | None) -> None:
    engine = OpenVinoEngine("openvino", lambda: BrokenModel(outcome))
    with pytest.raises(EngineError, match=r"ran out of memory on a batch of 2 x 3 ids; lower batch_tokens"):
        engine.run(INPUTS)


def test_a_model_whose_run_failed_is_compiled_anew_before_the_next_run(bundle: Bundle) -> None:
    sound = openvino.Core().compile_model(str(bundle.graph_path()), "CPU")
    models = [BrokenModel(RuntimeError("stale")), sound]
    engine = OpenVinoEngine("openvino", lambda: models.pop(0))
    with pytest.raises(EngineError, match="openvino failed: stale"):
        engine.run(INPUTS)
    np.testing.assert_allclose(engine.run(INPUTS)["score"], SCORES, rtol=1e-6)
    engine.run(INPUTS)
    assert models == []


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_several_threads_get_their_own_rows_scores(bundle: Bundle, engine: str) -> None:
    opened = open_engine(bundle, engine, threads=2)
    wrong: list[int] = []

    def score(first: int) -> None:
        for width in range(1, 40):
            ids = np.full((1, width), first)
            if not np.allclose(
                opened.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})["score"], first / 1000
            ):
                wrong.append(first)

    workers = [threading.Thread(target=score, args=(first,)) for first in (3, 50, 700, 9000)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


@pytest.mark.parametrize("message", ["std::bad_alloc", "Failed to allocate memory for requested buffer of size 9"])
def test_onnx_runtimes_allocation_failure_is_told_apart(message: str) -> None:
    class Session:
        def get_outputs(self) -> list[Any]:
            return []

        def run(self, *_: Any) -> None:
            raise RuntimeError(message)

    with pytest.raises(EngineError, match="onnxruntime ran out of memory on a batch of 2 x 3 ids"):
        OnnxRuntimeEngine(Session()).run(INPUTS)


def test_an_engines_message_becomes_one_short_line_without_its_sources() -> None:
    text = (
        "Exception from src/inference/core.cpp:132:\nCheck 'a && b' failed at src/x.cpp:9:\nUnable to read " + "x" * 999
    )
    line = str(load_failure("openvino", RuntimeError(text), "model.onnx"))
    assert line.startswith("openvino cannot load model.onnx: Unable to read xxx")
    assert line.endswith("...")
    assert len(line) < 400
    assert str(run_failure("openvino", ValueError(), INPUTS)) == "openvino failed: ValueError"


def test_the_engine_can_be_named_when_a_bundle_is_loaded(bundle: Bundle) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    one, other = (load(bundle.path, engine=name, threads=1).score([chat])[0] for name in ("onnxruntime", "openvino"))
    assert one.score == pytest.approx(other.score, rel=1e-6)


VNNI = frozenset({"avx2", "avx512_vnni"})


@pytest.mark.parametrize("flags", [VNNI, VNNI | {"amx_int8", "amx_bf16"}])
def test_openvino_comes_first_for_int8_with_vnni(flags: frozenset[str]) -> None:
    assert preferred("int8", flags) == ("openvino", "onnxruntime")


@pytest.mark.parametrize(
    ("precision", "flags"),
    [
        ("int8", frozenset({"avx2"})),
        ("int8", frozenset()),
        *((precision, VNNI) for precision in ("fp32", "fp16", "w8", "w4")),
    ],
)
def test_onnx_runtime_comes_first_elsewhere(precision: str, flags: frozenset[str]) -> None:
    assert preferred(precision, flags) == ("onnxruntime", "openvino")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "w8", "w4"])
def test_bfloat16_arithmetic_is_never_taken_unasked(precision: str) -> None:
    flags = VNNI | {"avx512_bf16", "amx_int8", "amx_bf16"}
    assert "openvino-bf16" not in preferred(precision, flags)


def test_auto_asks_the_rule_for_a_bundle_on_the_cpu_and_only_there(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def rule(*of: object) -> tuple[str, ...]:
        asked.append(of)
        return "openvino", "onnxruntime"

    monkeypatch.setattr(engines, "preferred", rule)
    monkeypatch.setattr(engines, "cpu_flags", lambda: VNNI)
    manifest = dataclasses.replace(bundle.manifest, precision="int8")
    assert open_engine(Bundle(bundle.path, manifest), threads=1).name == "openvino"
    assert asked == [("int8", VNNI)]
    with pytest.raises(EngineError, match=r"this onnxruntime .* has no cuda provider"):
        open_engine(Bundle(bundle.path, dataclasses.replace(manifest, target="cuda")), device="cuda")
    assert len(asked) == 1


class CudaThatFellBack:
    """Stands for an onnxruntime-gpu without a driver: it warns, and its session runs on the CPU."""

    def __init__(self, path: str, options: object, providers: list[tuple[str, dict[str, int]]]) -> None:
        self.asked.append(providers)

    asked: ClassVar[list[list[tuple[str, dict[str, int]]]]] = []

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_cuda_that_onnx_runtime_silently_replaced_by_the_cpu_is_an_error(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", CudaThatFellBack)
    manifest = dataclasses.replace(bundle.manifest, target="cuda")
    with pytest.raises(EngineError, match="could not start its cuda provider; is there an NVIDIA driver") as caught:
        open_engine(Bundle(bundle.path, manifest), device="cuda:1")
    assert "\n" not in str(caught.value)
    assert CudaThatFellBack.asked == [[("CUDAExecutionProvider", {"device_id": 1, "use_tf32": 0})]]


def test_an_id_outside_the_vocabulary_is_refused_where_openvino_would_read_zeros(bundle: Bundle) -> None:
    opened = open_engine(
        Bundle(bundle.path, dataclasses.replace(bundle.manifest, architecture={"vocab_size": 50})), "openvino"
    )
    with pytest.raises(EngineError, match="id 50 is outside the model's vocabulary of 50"):
        opened.run(INPUTS)
    opened.run({**INPUTS, "input_ids": np.minimum(IDS, 49)})


def test_cpu_flags_are_those_of_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx512_vnni amx_int8\nbugs\t\t:\n")
    assert cpu_flags(cpuinfo) == {"fpu", "avx512_vnni", "amx_int8"}
    assert cpu_flags(tmp_path / "none") == frozenset()
