"""What we call of TensorRT is there, under these names and with these arguments, in both of its packages.

tensorrt_rtx is the real thing. The bindings of TensorRT 11 come without their libraries, gigabytes that are of use only
on a GPU. Here they are loaded against empty ones: enough to ask for names and signatures, and nothing of it is run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fake_tensorrt import FakeCuda

LIBRARIES = {
    "libnvinfer.so.11": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "libnvinfer_plugin.so.11": ("initLibNvInferPlugins",),
    "libnvonnxparser.so.11": (
        "createNvOnnxParserRefitter_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "getNvOnnxParserVersion",
    ),
}
"""What the bindings look for when they are loaded."""

CALLS = {
    "Runtime.__init__": ("logger",),
    "Runtime.deserialize_cuda_engine": ("serialized_engine",),
    "ICudaEngine.get_tensor_name": ("index",),
    "ICudaEngine.create_execution_context": (),
    "ICudaEngine.create_engine_inspector": (),
    "EngineInspector.get_engine_information": ("format",),
    "IExecutionContext.set_optimization_profile_async": ("profile_index", "stream_handle"),
    "IExecutionContext.set_input_shape": ("name", "shape"),
    "IExecutionContext.get_tensor_shape": ("name",),
    "IExecutionContext.set_tensor_address": ("name", "memory"),
    "IExecutionContext.execute_async_v3": ("stream_handle",),
    "Refitter.__init__": ("engine", "logger"),
    "Refitter.refit_cuda_engine": (),
    "OnnxParserRefitter.__init__": ("refitter", "logger"),
    "OnnxParserRefitter.refit_from_file": ("model",),
    "IProgressMonitor.__init__": (),
    "IProgressMonitor.phase_start": ("phase_name", "parent_phase", "num_steps"),
    "IProgressMonitor.step_complete": ("phase_name", "step"),
    "IProgressMonitor.phase_finish": ("phase_name",),
    "INetworkDefinition.get_layer": ("index",),
    "ILayer.get_input": ("index",),
    "ILayer.get_output": ("index",),
    # what Polygraphy calls for us
    "Builder.create_network": ("flags",),
    "Builder.create_builder_config": (),
    "Builder.create_optimization_profile": (),
    "Builder.build_serialized_network": ("network", "config"),
    "OnnxParser.__init__": ("network", "logger"),
    "OnnxParser.parse_from_file": ("model",),
    "OnnxParser.get_error": ("index",),
    "IBuilderConfig.set_flag": ("flag",),
    "IBuilderConfig.add_optimization_profile": ("profile",),
    "IBuilderConfig.create_timing_cache": ("serialized_timing_cache",),
    "IBuilderConfig.set_timing_cache": ("cache", "ignore_mismatch"),
    "IOptimizationProfile.set_shape": ("input", "min", "opt", "max"),
}
"""Method -> the names of its arguments without self, in order; it may have more behind them."""

NAMES = (
    "__version__",
    "Logger.ERROR",
    "ICudaEngine.num_io_tensors",
    "INetworkDefinition.num_layers",
    "ILayer.name",
    "ILayer.type",
    "ILayer.num_inputs",
    "ILayer.num_outputs",
    "ITensor.name",
    "ITensor.dtype",
    "IAttentionInputLayer.attention",
    "IAttention.decomposable",
    "IBuilderConfig.builder_optimization_level",
    "IBuilderConfig.progress_monitor",
    "BuilderFlag.WEIGHT_STREAMING",
    "BuilderFlag.STRIP_PLAN",
    "LayerInformationFormat.JSON",
    "LayerType.ATTENTION_INPUT",
    "DataType.FP8",
    "DataType.INT4",
)

LOOK = """
import importlib, json, sys
from operator import attrgetter
module, names = importlib.import_module(sys.argv[1]), json.loads(sys.argv[2])
found = {}
for name in names:
    try:
        found[name] = str(attrgetter(name)(module).__doc__)
    except AttributeError:
        pass
print(json.dumps({"version": module.__version__, "found": found}))
"""


def docstrings(module: str, libraries: Path | None = None) -> tuple[str, dict[str, str]]:
    """The package's version, and the docstring of each name it has, asked for in a process of its own."""
    environment = os.environ | ({"LD_LIBRARY_PATH": str(libraries)} if libraries else {})
    names = json.dumps([*CALLS, *NAMES])
    run = subprocess.run(
        [sys.executable, "-c", LOOK, module, names], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    return answer["version"], answer["found"]


def stub_libraries(folder: Path) -> Path:
    """Shared libraries whose functions give a null pointer."""
    compiler = shutil.which("cc")
    assert compiler is not None
    for name, functions in LIBRARIES.items():
        source = "\n".join(f"void *{function}(void) {{ return 0; }}" for function in functions)
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-x", "c", "-", "-o", str(folder / name)]
        subprocess.run(command, input=source, text=True, check=True)
    return folder


def assert_has_what_we_call(found: dict[str, str]) -> None:
    assert [name for name in (*CALLS, *NAMES) if name not in found] == []
    for name, arguments in CALLS.items():
        assert takes(found[name], arguments), f"{name}: {found[name]}"


def takes(docstring: str, arguments: tuple[str, ...]) -> bool:
    """Whether one of the signatures that pybind11 writes into a docstring begins with these arguments."""
    signatures = [line for line in docstring.splitlines() if "(self: " in line]
    named = [tuple(part.split(":")[0].strip() for part in line.split(", ")[1:]) for line in signatures]
    return any(names[: len(arguments)] == arguments for names in named)


@pytest.mark.skipif(sys.platform != "linux", reason="the stub libraries are ELF files")
@pytest.mark.skipif(find_spec("tensorrt_bindings") is None, reason="tensorrt-cu13-bindings is not installed")
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make the stub libraries")
def test_the_bindings_of_tensorrt_11_have_what_we_call(tmp_path: Path) -> None:
    version, found = docstrings("tensorrt_bindings", stub_libraries(tmp_path))
    assert version.startswith("11.")
    assert_has_what_we_call(found)


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx-cu13 is not installed")
def test_tensorrt_rtx_has_what_we_call() -> None:
    assert_has_what_we_call(docstrings("tensorrt_rtx")[1])


def test_cudas_bindings_have_what_the_fake_of_them_has() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    names = [name for name in vars(FakeCuda) if name.startswith("cuda")]
    assert "cudaGraphLaunch" in names
    assert [name for name in names if not hasattr(runtime, name)] == []
    for name in ("cudaStreamCaptureMode", "cudaMemcpyKind", "cudaDeviceAttr"):
        assert all(hasattr(getattr(runtime, name), member) for member in vars(getattr(FakeCuda, name)))


@pytest.mark.parametrize("arguments", [("name", "shape"), ("name",), ()])
def test_a_signature_is_read_from_pybinds_docstring(arguments: tuple[str, ...]) -> None:
    assert takes("set_input_shape(self: a.b.C, name: str, shape: a.Dims) -> bool\n\n    Set it.", arguments)


@pytest.mark.parametrize("docstring", ["f(self: a.C, other: str) -> bool", "f(self: a.C) -> bool", "A property."])
def test_another_signature_is_not_taken_for_it(docstring: str) -> None:
    assert not takes(docstring, ("name",))
