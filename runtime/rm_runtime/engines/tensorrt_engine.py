"""TensorRT: a compiled plan of the bundle, on an NVIDIA GPU.

Every profile has an execution context, pinned host memory and device memory for its largest shapes, made when it is
first used. Their addresses never change, so a shape that comes again is launched as one CUDA graph, copies included.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from importlib import import_module
from threading import Lock
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from rm_runtime.bundle import Bundle
from rm_runtime.engines.cuda import checked, cuda_runtime
from rm_runtime.engines.protocol import Arrays, Engine
from rm_runtime.engines.tensorrt_plans import checked_bytes, fitting_profile, usable_plan
from rm_runtime.errors import EngineError
from rm_runtime.manifest import EnginePlan

LENGTH_STEP = 32
"""Rows are padded to a multiple of so many ids: fewer different shapes, so that their CUDA graphs are used again."""
GRAPHS = 16
"""Captured shapes a profile keeps, the latest used."""


class TensorRtEngine:
    """One deserialised plan on one device, run by one thread at a time on one stream."""

    name = "tensorrt"

    def __init__(self, plan: EnginePlan, engine: Any, cuda: Any, device: int) -> None:
        self._plan, self._engine, self._cuda, self._device = plan, engine, cuda, device
        self._stream = checked(cuda.cudaStreamCreate())
        self._slots: dict[int, _Slot] = {}
        self._lock = Lock()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """More rows than a profile holds are run in parts. Raises EngineError if no profile takes rows so long."""
        padded = _padded(inputs, max(profile["input_ids"][2][1] for profile in self._plan.profiles))
        rows, length = padded["input_ids"].shape
        holding = [profile["input_ids"][2] for profile in self._plan.profiles if length <= profile["input_ids"][2][1]]
        largest = max((batch for batch, _ in holding), default=rows)
        with self._lock:
            checked(self._cuda.cudaSetDevice(self._device))  # CUDA keeps a current device for every thread
            parts = [
                self._run(
                    {
                        name: array if name == "prefix_ids" else array[first : first + largest]
                        for name, array in padded.items()
                    }
                )
                for first in range(0, rows, largest)
            ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def reserve(self) -> None:
        """Make every profile's context and memory now. Raises EngineError if the GPU has too little."""
        with self._lock:
            checked(self._cuda.cudaSetDevice(self._device))
            for number in range(len(self._plan.profiles)):
                self._slot(number)

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        return self._slot(fitting_profile(self._plan, {name: array.shape for name, array in inputs.items()})).run(
            inputs
        )

    def _slot(self, number: int) -> _Slot:
        if number not in self._slots:
            self._slots[number] = _Slot(self._engine, self._plan, number, self._cuda, self._stream)
        return self._slots[number]


class _Slot:
    """One profile's context, memory and captured graphs."""

    def __init__(self, engine: Any, plan: EnginePlan, number: int, cuda: Any, stream: Any) -> None:
        self._cuda, self._stream = cuda, stream
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError("the GPU has no memory left for this engine's largest shapes; build it with smaller ones")
        self._context.set_optimization_profile_async(number, int(stream))
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        profile = plan.profiles[number]
        self._outputs = [name for name in names if name not in profile]
        for name, (_, _, largest) in profile.items():
            self._context.set_input_shape(name, largest)
        self._buffers: dict[str, _Buffer] = {}
        for name in names:
            dtype = np.dtype(np.int64 if name in profile else np.float32)
            self._buffers[name] = _Buffer(cuda, tuple(self._context.get_tensor_shape(name)), dtype)
            self._context.set_tensor_address(name, self._buffers[name].device)
        self._graphs: OrderedDict[tuple[tuple[int, ...], ...], Any] = OrderedDict()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        for name, array in inputs.items():
            self._buffers[name].view(array.shape)[...] = array
        shapes = tuple(array.shape for array in inputs.values())
        graph = self._graphs.get(shapes)
        for name, array in inputs.items():
            self._context.set_input_shape(name, array.shape)
        if graph is None:
            self._enqueue(inputs)  # TensorRT wants one plain run of a shape before it is captured
            checked(self._cuda.cudaStreamSynchronize(self._stream))
            if self._capturable():
                self._graphs[shapes] = self._captured(inputs)
            if len(self._graphs) > GRAPHS:
                checked(self._cuda.cudaGraphExecDestroy(self._graphs.popitem(last=False)[1]))
        else:
            self._graphs.move_to_end(shapes)
            checked(self._cuda.cudaGraphLaunch(graph, self._stream))
            checked(self._cuda.cudaStreamSynchronize(self._stream))
        return {
            name: self._buffers[name].view(tuple(self._context.get_tensor_shape(name))).copy() for name in self._outputs
        }

    def _capturable(self) -> bool:
        """Only TensorRT-RTX has engines that cannot be captured, and says so."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(int(self._stream)))

    def _captured(self, inputs: Mapping[str, NDArray[Any]]) -> Any:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        checked(self._cuda.cudaStreamBeginCapture(self._stream, mode))
        try:
            self._enqueue(inputs)
        finally:
            captured = self._cuda.cudaStreamEndCapture(self._stream)  # or the stream takes no work any more
        graph = checked(captured)
        launchable = checked(self._cuda.cudaGraphInstantiate(graph, 0))
        checked(self._cuda.cudaGraphDestroy(graph))
        return launchable

    def _enqueue(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Inputs to the GPU, the engine, outputs back; all on the stream."""
        for name, array in inputs.items():
            self._buffers[name].upload(self._cuda, array.shape, self._stream)
        if not self._context.execute_async_v3(int(self._stream)):
            raise EngineError("TensorRT could not run its engine; its own log says more")
        for name in self._outputs:
            self._buffers[name].download(self._cuda, tuple(self._context.get_tensor_shape(name)), self._stream)


class _Buffer:
    """Device memory and its pinned twin on the host, for arrays of up to `largest`; freed with this object."""

    def __init__(self, cuda: Any, largest: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        size = self._size(largest)
        self.device = int(checked(cuda.cudaMalloc(size)))
        finalize(self, cuda.cudaFree, self.device).atexit = False  # the process gives everything back itself
        self._host = int(checked(cuda.cudaHostAlloc(size, 0)))
        finalize(self, cuda.cudaFreeHost, self._host).atexit = False
        self._memory = (ctypes.c_byte * size).from_address(self._host)

    def view(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """The beginning of the host's memory as an array."""
        array: NDArray[Any] = np.ndarray(shape, self._dtype, memoryview(self._memory))
        return array

    def upload(self, cuda: Any, shape: tuple[int, ...], stream: Any) -> None:
        kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        checked(cuda.cudaMemcpyAsync(self.device, self._host, self._size(shape), kind, stream))

    def download(self, cuda: Any, shape: tuple[int, ...], stream: Any) -> None:
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        checked(cuda.cudaMemcpyAsync(self._host, self.device, self._size(shape), kind, stream))

    def _size(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * self._dtype.itemsize


def open_plan(bundle: Bundle, threads: int | None, device: str | None, role: str) -> Engine:
    """The bundle's plan of that graph. threads mean nothing to a GPU.

    Raises EngineError if there is no GPU, or no plan of the bundle may run on it.
    """
    named = re.fullmatch(r"cuda(?::(\d+))?", device or "cuda")
    if named is None:
        raise EngineError(f"tensorrt runs on cuda or cuda:N, not on {device!r}")
    index = int(named[1] or 0)
    if bundle.manifest.target != "tensorrt":
        raise EngineError(
            f"this bundle is written for {bundle.manifest.target}; export it with --target tensorrt for this engine"
        )
    cuda = cuda_runtime()
    checked(cuda.cudaSetDevice(index))
    plan = usable_plan(bundle, role, index)
    content = checked_bytes(bundle, plan)
    trt: Any = import_module(plan.runtime)
    logger = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(logger).deserialize_cuda_engine(content)
    if engine is None:
        raise EngineError(
            f"{plan.runtime} {plan.version} cannot read {bundle.path / plan.file}; run `rm-export engine` here"
        )
    if plan.stripped:
        _refit(trt, logger, engine, bundle, role)
    return TensorRtEngine(plan, engine, cuda, index)


def _refit(trt: Any, logger: Any, engine: Any, bundle: Bundle, role: str) -> None:
    """Give a stripped plan its weights back."""
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not (parser.refit_from_file(str(bundle.graph_path(role))) and refitter.refit_cuda_engine()):
        raise EngineError(
            f"the weights of {bundle.graph_path(role)} do not fit its engine; run `rm-export engine` anew"
        )


def _padded(inputs: Mapping[str, NDArray[Any]], longest: int) -> dict[str, NDArray[Any]]:
    """Rows padded on the right to a multiple of LENGTH_STEP; a score does not depend on padding."""
    length = inputs["input_ids"].shape[1]
    more = min(-length % LENGTH_STEP, max(0, longest - length))
    return {
        name: array if name == "prefix_ids" else np.pad(array, ((0, 0), (0, more))) for name, array in inputs.items()
    }
