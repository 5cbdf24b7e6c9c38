"""OpenVINO, on the CPU: the same ONNX file as ONNX Runtime's.

Dynamic shapes are compiled once, and weights of the external data file are memory-mapped. What the graph quantises
runs in int8, everything else in float32 ("openvino"), or in bfloat16 for who asks for it by name ("openvino-bf16").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from rm_runtime.bundle import Bundle
from rm_runtime.engines.cores import usable_cores
from rm_runtime.engines.failures import load_failure, run_failure
from rm_runtime.engines.protocol import Arrays, Engine
from rm_runtime.errors import EngineError

ID_INPUTS = frozenset({"input_ids", "prefix_ids"})
_NO_BFLOAT16 = "this CPU has no bfloat16 instructions (avx512_bf16 or AMX), so openvino-bf16 cannot run; take openvino"


class OpenVinoEngine:
    """One compiled model, run by one thread at a time: it has one stream, which would queue them anyway.

    OpenVINO 2026.4 leaves stale shapes in a model whose run failed, so the next run compiles it anew; and with one
    thread it reports no failed allocation but leaves the outputs as they were. Each run has a request of its own (8
    microseconds), whose outputs are then empty and not those of the run before.
    """

    def __init__(
        self, name: str, compile_graph: Callable[[], openvino.CompiledModel], vocab_size: int | None = None
    ) -> None:
        self.name = name
        self._vocab_size = vocab_size
        self._compile_graph = compile_graph
        self._compiled: openvino.CompiledModel | None = compile_graph()
        self._lock = Lock()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        if self._vocab_size is not None:
            for name in ID_INPUTS & inputs.keys():
                _check_ids(inputs[name], self._vocab_size)
        with self._lock:
            compiled, self._compiled = self._compiled or self._compile_graph(), None
            outputs = _infer(compiled, inputs)
            self._compiled = compiled
        return outputs


def open_float32(bundle: Bundle, threads: int | None, device: str | None, role: str) -> Engine:
    """The bundle's graph of that role, in float32 around its int8 products. Raises EngineError if it cannot."""
    return _open("openvino", openvino.Type.f32, bundle, threads, device, role)


def open_bfloat16(bundle: Bundle, threads: int | None, device: str | None, role: str) -> Engine:
    """The same with bfloat16 arithmetic. Raises EngineError on a CPU without it."""
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise EngineError(_NO_BFLOAT16)
    return _open("openvino-bf16", openvino.Type.bf16, bundle, threads, device, role)


def _open(
    name: str, precision: openvino.Type, bundle: Bundle, threads: int | None, device: str | None, role: str
) -> Engine:
    if device not in (None, "cpu"):
        raise EngineError(f"{name} runs on cpu, not on {device!r}; onnxruntime runs on cuda too")
    target = bundle.manifest.target
    if target != "cpu":
        raise EngineError(f"this bundle is written for {target}; export it with --target cpu for {name}")
    path = bundle.graph_path(role)
    properties = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads or usable_cores(),
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # by default activations of weight-only bundles become int8
    }

    def compile_graph() -> openvino.CompiledModel:
        try:
            return openvino.Core().compile_model(str(path), "CPU", properties)
        except (RuntimeError, MemoryError) as error:
            raise load_failure(name, error, path) from None

    return OpenVinoEngine(name, compile_graph, bundle.manifest.architecture.get("vocab_size"))


def _check_ids(ids: NDArray[Any], vocab_size: int) -> None:
    """ONNX says that an index outside its table is an error; OpenVINO reads zeros there, which would give a score."""
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise EngineError(
            f"id {wrong} is outside the model's vocabulary of {vocab_size}; use the bundle's own tokenizer"
        )


def _infer(compiled: openvino.CompiledModel, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """One run. Raises EngineError if it fails, also where OpenVINO does not say so."""
    names = {port.any_name for port in compiled.inputs}
    if set(inputs) != names:
        raise EngineError(f"the graph reads {', '.join(sorted(names))}, not {', '.join(sorted(inputs)) or 'nothing'}")
    try:
        results = compiled.create_infer_request().infer(dict(inputs), share_inputs=True)
    except (RuntimeError, MemoryError) as error:
        raise run_failure("openvino", error, inputs) from None
    outputs = {port.any_name: np.asarray(results[port]) for port in compiled.outputs}
    if not all(array.size for array in outputs.values()):
        raise run_failure("openvino", MemoryError(), inputs)
    return outputs
