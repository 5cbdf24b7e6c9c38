"""ONNX Runtime, on CPU or CUDA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from rm_runtime.bundle import Bundle
from rm_runtime.engines.cores import usable_cores
from rm_runtime.engines.failures import load_failure, run_failure
from rm_runtime.engines.memory import available_bytes
from rm_runtime.engines.protocol import Arrays, Engine
from rm_runtime.errors import EngineError

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_CPU_PRECISIONS = ("fp32", "fp16", "int8", "w8", "w4")
_CPU_RUNS = frozenset({*_CPU_PRECISIONS, "fp8"})
"""float8 only in bundles for TensorRT, which run here where there is no GPU."""


class OnnxRuntimeEngine:
    """One InferenceSession."""

    name = "onnxruntime"

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        try:
            arrays = self._session.run(self._outputs, dict(inputs))
        except Exception as error:  # onnxruntime's own exceptions have no public base
            raise run_failure("onnxruntime", error, inputs) from None
        return {name: np.asarray(array) for name, array in zip(self._outputs, arrays, strict=True)}


def open_bundle_graph(bundle: Bundle, threads: int | None, device: str | None, role: str) -> Engine:
    """Open the bundle's graph of that role. Raises EngineError if this build of ONNX Runtime cannot run it."""
    manifest = bundle.manifest
    kind, _, index = (device or ("cuda" if manifest.target == "cuda" else "cpu")).partition(":")
    if kind not in _PROVIDERS:
        raise EngineError(f"onnxruntime runs on {' or '.join(_PROVIDERS)}, not on {device!r}")
    if kind == "cpu" and manifest.precision not in _CPU_RUNS:
        raise EngineError(
            f"onnxruntime has no {manifest.precision} attention on the CPU; export with "
            f"--precision {' or '.join(_CPU_PRECISIONS)}, or run this bundle on a GPU with device='cuda'"
        )
    if _PROVIDERS[kind] not in onnxruntime.get_available_providers():
        raise EngineError(
            f"this onnxruntime {onnxruntime.__version__} has no {kind} provider; pip install 'rm-export[cuda]' in an "
            "environment without the cpu extra, or export with --target cpu"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if kind == "cpu" and bundle.weight_bytes > available_bytes():
        # its own layout of the weights does not fit: slower, from pages of the file that the kernel may drop
        options.add_session_config_entry("session.disable_prepacking", "1")
    if manifest.precision == "fp8":
        # its fusions into integer products take float8 for int8 where float32 is around it (onnxruntime#22269)
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    provider: Any = _PROVIDERS[kind]
    if kind == "cuda":
        # TF32 would round the inputs of float32 products to 11 bits: bundles say float32 where decisions hang on it
        provider = (provider, {"device_id": int(index or 0), "use_tf32": 0})
    try:
        session = onnxruntime.InferenceSession(str(bundle.graph_path(role)), options, providers=[provider])
    except Exception as error:  # onnxruntime's own exceptions have no public base
        raise load_failure("onnxruntime", error, bundle.graph_path(role)) from None
    if _PROVIDERS[kind] not in session.get_providers():  # onnxruntime only warns, and takes the CPU
        raise EngineError(
            f"onnxruntime could not start its {kind} provider; is there an NVIDIA driver, and are CUDA's libraries of "
            "the version that this onnxruntime was built for? (import torch, or onnxruntime.preload_dlls(), finds them)"
        )
    return OnnxRuntimeEngine(session)
