"""The few things of CUDA's runtime that a TensorRT engine needs, through NVIDIA's own bindings, as exceptions."""

from __future__ import annotations

from typing import Any

from rm_runtime.errors import EngineError


def cuda_runtime() -> Any:
    """The module cuda.bindings.runtime. Raises EngineError if it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise EngineError("running a TensorRT engine needs cuda-bindings; pip install 'rm-export[tensorrt]'") from None
    return runtime


def checked(result: tuple[Any, ...]) -> Any:
    """What a call gave, without its status. Raises EngineError with CUDA's own name for a failure."""
    status, *values = result
    if int(status) != 0:
        raise EngineError(_in_words(status))
    return values[0] if len(values) == 1 else tuple(values)


def gpu_capability(device: int = 0) -> str | None:
    """ "8.9" and the like; None without a GPU, a driver or the bindings."""
    try:
        runtime = cuda_runtime()
        attributes = runtime.cudaDeviceAttr
        major, minor = (
            checked(runtime.cudaDeviceGetAttribute(attribute, device))
            for attribute in (
                attributes.cudaDevAttrComputeCapabilityMajor,
                attributes.cudaDevAttrComputeCapabilityMinor,
            )
        )
    except EngineError:
        return None
    return f"{major}.{minor}"


def _in_words(status: Any) -> str:
    name = getattr(status, "name", str(status))
    if name in ("cudaErrorInsufficientDriver", "cudaErrorNoDevice"):
        return f"no NVIDIA GPU can be used here ({name}); use another engine, or a machine with a GPU and its driver"
    if name == "cudaErrorMemoryAllocation":
        return f"the GPU is out of memory ({name}); use a smaller batch_tokens, or build with smaller --shapes"
    return f"CUDA failed: {name}"
