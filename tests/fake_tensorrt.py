"""TensorRT and CUDA's runtime without a GPU: the same calls with the same meaning, over the host's memory.

Work on a stream is done when the stream is synchronised, not before. What is enqueued during a capture is not done at
all, and done at each launch of its graph with the addresses and shapes it was captured with. A plan is JSON that names
an ONNX file; ONNX Runtime runs it.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from rm_export.engine_profiles import Bucket, profiles_for
from rm_runtime.bundle import MANIFEST_NAME, open_bundle, sha256_of
from rm_runtime.manifest import EnginePlan, FileRecord

VERSION = "11.4.0"
Work = Callable[[], None]


class Status(IntEnum):
    cudaSuccess = 0  # noqa: N815  # CUDA's own names
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815


OK = Status.cudaSuccess


class Handle:
    """A stream or a graph, by its number."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.pending: list[Work] = []
        self.captured: list[Work] | None = None

    def __int__(self) -> int:
        return id(self)


class FakeCuda(ModuleType):
    """cuda.bindings.runtime. capabilities: of each device. failing: call -> the status it gives instead."""

    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeCapabilityMajor=0, cudaDevAttrComputeCapabilityMinor=1)  # noqa: N815

    def __init__(self, capabilities: Sequence[str] = ("8.9",)) -> None:
        super().__init__("cuda.bindings.runtime")
        self.capabilities = list(capabilities)
        self.failing: dict[str, Status] = {}
        self.memory: dict[int, tuple[ctypes.Array[Any], int]] = {}
        self.streams: dict[int, Handle] = {}
        self.graphs: set[Handle] = set()
        self.launches = 0
        self._thread = threading.local()

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cuda") and name in object.__getattribute__(self, "__dict__").get("failing", {}):
            return lambda *arguments: (self.failing[name],)
        return object.__getattribute__(self, name)

    @property
    def device(self) -> int:
        """The calling thread's."""
        return getattr(self._thread, "device", 0)

    def cudaSetDevice(self, device: int) -> tuple[Status]:  # noqa: N802
        if device >= len(self.capabilities):
            return (Status.cudaErrorNoDevice,)
        self._thread.device = device
        return (OK,)

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> tuple[Any, ...]:  # noqa: N802
        if device >= len(self.capabilities):
            return (Status.cudaErrorNoDevice,)
        return OK, int(self.capabilities[device].split(".")[attribute])

    def cudaStreamCreate(self) -> tuple[Any, ...]:  # noqa: N802
        stream = Handle(self.device)
        self.streams[int(stream)] = stream
        return OK, stream

    def cudaStreamSynchronize(self, stream: Handle) -> tuple[Status]:  # noqa: N802
        while stream.pending:
            stream.pending.pop(0)()
        return (OK,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:  # noqa: N802
        return OK, self._allocated(size)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:  # noqa: N802
        return OK, self._allocated(size)

    def cudaFree(self, address: int) -> tuple[Status]:  # noqa: N802
        del self.memory[address]
        return (OK,)

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: Handle) -> tuple[Status]:  # noqa: N802
        if any(ctypes.sizeof(self.memory[address][0]) < size for address in (to, source)):
            return (Status.cudaErrorIllegalAddress,)
        self.enqueue(stream, lambda: ctypes.memmove(to, source, size))
        return (OK,)

    def cudaStreamBeginCapture(self, stream: Handle, mode: int) -> tuple[Status]:  # noqa: N802
        if stream.captured is not None:
            return (Status.cudaErrorInvalidValue,)
        stream.captured = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: Handle) -> tuple[Any, ...]:  # noqa: N802
        work, stream.captured = stream.captured, None
        return OK, work

    def cudaGraphInstantiate(self, work: list[Work], flags: int) -> tuple[Any, ...]:  # noqa: N802
        graph = Handle(self.device)
        graph.pending = list(work)
        self.graphs.add(graph)
        return OK, graph

    def cudaGraphDestroy(self, work: list[Work]) -> tuple[Status]:  # noqa: N802
        work.clear()
        return (OK,)

    def cudaGraphExecDestroy(self, graph: Handle) -> tuple[Status]:  # noqa: N802
        self.graphs.remove(graph)
        return (OK,)

    def cudaGraphLaunch(self, graph: Handle, stream: Handle) -> tuple[Status]:  # noqa: N802
        assert graph in self.graphs
        self.launches += 1
        stream.pending += graph.pending
        return (OK,)

    def enqueue(self, stream: Handle, work: Work) -> None:
        (stream.pending if stream.captured is None else stream.captured).append(work)

    def _allocated(self, size: int) -> int:
        memory = (ctypes.c_byte * size)()
        self.memory[ctypes.addressof(memory)] = memory, self.device
        return ctypes.addressof(memory)


class FakeTensorRt(ModuleType):
    """The package tensorrt. contexts: how many the GPU has memory for. ran: (profile, input shapes) of each run."""

    def __init__(self, cuda: FakeCuda, name: str = "tensorrt") -> None:
        super().__init__(name)
        self.__version__ = VERSION
        self.__spec__ = ModuleSpec(name, None)
        self.cuda = cuda
        self.contexts = 100
        self.ran: list[tuple[int, dict[str, tuple[int, ...]]]] = []
        self.refitted: list[str] = []
        self.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None})
        self.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=self._deserialised)
        self.Refitter = lambda engine, logger: SimpleNamespace(refit_cuda_engine=lambda: True)
        self.OnnxParserRefitter = lambda refitter, logger: SimpleNamespace(refit_from_file=self._refit)

    def _deserialised(self, plan: bytes) -> FakeEngine | None:
        try:
            return FakeEngine(self, **json.loads(plan))
        except ValueError:
            return None

    def _refit(self, path: str) -> bool:
        self.refitted.append(path)
        return True


class FakeEngine:
    """ICudaEngine, of the device that was current when it was deserialised."""

    def __init__(self, trt: FakeTensorRt, graph: str) -> None:
        self.trt, self.device = trt, trt.cuda.device
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = {value.name: value.shape for value in self.session.get_outputs()}
        self.num_io_tensors = len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, place: int) -> str:
        return [*self.inputs, *self.outputs][place]

    def create_execution_context(self) -> FakeContext | None:
        self.trt.contexts -= 1
        return FakeContext(self) if self.trt.contexts >= 0 else None


class FakeContext:
    """IExecutionContext."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine, self._trt = engine, engine.trt
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._warm: set[tuple[tuple[int, ...], ...]] = set()

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        self._profile = number
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        batch = self._shapes["input_ids"][0]
        return tuple(batch if isinstance(size, str) else size for size in self._engine.outputs[name])

    def execute_async_v3(self, number: int) -> bool:
        cuda, stream = self._trt.cuda, self._trt.cuda.streams[number]
        devices = {cuda.memory[address][1] for address in self._addresses.values()} | {stream.device}
        shapes = dict(self._shapes)
        key = tuple(shapes.values())
        if devices != {self._engine.device} or cuda.device != self._engine.device:
            return False
        if stream.captured is not None and key not in self._warm:
            return False
        self._warm.add(key)
        cuda.enqueue(stream, lambda: self._execute(shapes))
        return True

    def _execute(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._trt.ran.append((self._profile, shapes))
        feeds = {name: self._array(name, shape, np.int64) for name, shape in shapes.items()}
        results = self._engine.session.run(list(self._engine.outputs), feeds)
        for name, result in zip(self._engine.outputs, results, strict=True):
            self._array(name, result.shape, np.float32)[...] = result

    def _array(self, name: str, shape: tuple[int, ...], dtype: type) -> Any:
        return np.ndarray(shape, dtype, self._trt.cuda.memory[self._addresses[name]][0])


def install(monkeypatch: pytest.MonkeyPatch, capabilities: Sequence[str] = ("8.9",)) -> FakeTensorRt:
    """Put both packages in place of the real ones for one test."""
    cuda = FakeCuda(capabilities)
    trt = FakeTensorRt(cuda)
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = cuda  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    return trt


def add_plans(folder: Path, buckets: Sequence[tuple[int, int]], **changes: Any) -> None:
    """Give a bundle a plan of each of its graphs for the GPU of `install`. changes: to each EnginePlan's fields."""
    manifest = open_bundle(folder).manifest
    files, plans = dict(manifest.files), []
    for role, graph in manifest.graphs.items():
        plan = EnginePlan(
            graph=role,
            graph_sha256=manifest.files[graph].sha256,
            runtime="tensorrt",
            version=VERSION,
            compute_capability="8.9",
            stripped=False,
            file=f"engines/{role}.plan",
            profiles=profiles_for(role, [Bucket(*bucket) for bucket in buckets], manifest.prompt.max_length),
        )
        path = folder / plan.file
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"graph": str(folder / graph)}))
        files[plan.file] = FileRecord(path.stat().st_size, sha256_of(path))
        plans.append(replace(plan, **changes))
    (folder / MANIFEST_NAME).write_text(replace(manifest, files=files, engines=tuple(plans)).to_json())
