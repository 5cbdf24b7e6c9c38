"""Engines by name. An engine's package is imported only when it is used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from rm_runtime.bundle import Bundle
from rm_runtime.engines.choice import cpu_flags, preferred
from rm_runtime.engines.cuda import gpu_capability
from rm_runtime.engines.memory import available_bytes
from rm_runtime.engines.protocol import Arrays, Engine
from rm_runtime.engines.shared_prefix import SharedPrefixEngine
from rm_runtime.engines.tensorrt_plans import PACKAGES as TENSORRT_PACKAGES
from rm_runtime.errors import EngineError

__all__ = ["ENGINES", "Arrays", "Engine", "chosen_engine", "open_engine"]

_log = logging.getLogger(__name__)

PREFIX_ROLE = "prefix"
"""The graph that computes what rows have in common once."""

Opener = Callable[[Bundle, int | None, str | None, str], Engine]


@dataclass(frozen=True)
class EngineRecord:
    """Where an engine is: our module and its function that opens a bundle's graph, its packages, their extra.

    packages: any one of them will do. one_copy: a second graph of the bundle takes no host memory that is not there:
    weights that do not fit once more stay in their file, mapped, or they are on the GPU.
    """

    module: str
    opener: str
    packages: tuple[str, ...]
    extra: str
    one_copy: bool

    def installed(self) -> bool:
        return any(find_spec(package) is not None for package in self.packages)


ENGINES = {
    "onnxruntime": EngineRecord("onnxruntime_engine", "open_bundle_graph", ("onnxruntime",), "cpu", True),
    "openvino": EngineRecord("openvino_engine", "open_float32", ("openvino",), "openvino", False),
    "openvino-bf16": EngineRecord("openvino_engine", "open_bfloat16", ("openvino",), "openvino", False),
    "tensorrt": EngineRecord("tensorrt_engine", "open_plan", TENSORRT_PACKAGES, "tensorrt", True),
}


def open_engine(
    bundle: Bundle,
    engine: str = "auto",
    threads: int | None = None,
    device: str | None = None,
    share_prefixes: bool = True,
) -> Engine:
    """Open the bundle's plain graph in an engine.

    engine: "auto" takes the installed one that was measured to be fastest for this CPU and precision, of those that
    decide as the bundle does (rm_runtime.engines.choice). threads: how many the engine may use, None = all that this
    process may run on. device: "cpu", "cuda" or "cuda:1", None = the engine's best for this bundle. share_prefixes:
    a SharedPrefixEngine if the bundle has the graph for it, which is opened when it is first needed, and if memory is
    left for the second copy of the weights that some engines make of it.
    Raises EngineError if none is installed, or the chosen one cannot run the bundle.
    """
    if threads is not None and threads < 1:
        raise EngineError(f"threads={threads}: an engine needs at least one")
    if engine == "auto":
        engine = chosen_engine(bundle, device)
    opener = _opener(engine)
    fits = ENGINES[engine].one_copy or 2 * bundle.weight_bytes <= available_bytes()
    plain = opener(bundle, threads, device, "plain")
    if not share_prefixes or not fits or PREFIX_ROLE not in bundle.manifest.graphs:
        return plain
    return SharedPrefixEngine(plain, lambda: opener(bundle, threads, device, PREFIX_ROLE))


def chosen_engine(bundle: Bundle, device: str | None = None) -> str:
    """The name that engine="auto" stands for. Raises EngineError if no engine is installed."""
    installed = [name for name, record in ENGINES.items() if record.installed()]
    if not installed:
        hints = " or ".join(dict.fromkeys(f"pip install 'rm-export[{record.extra}]'" for record in ENGINES.values()))
        raise EngineError(f"no engine is installed; {hints}")
    manifest = bundle.manifest
    if manifest.target == "tensorrt" and (device or "cuda").startswith("cuda"):
        if "tensorrt" in installed and gpu_capability() is not None:
            return "tensorrt"
        missing = "no GPU can be used here" if "tensorrt" in installed else "no TensorRT is installed"
        _log.warning("%s is written for TensorRT, and %s: ONNX Runtime runs it", bundle.path, missing)
    on_cpu = manifest.target == "cpu" and device in (None, "cpu")
    order = preferred(manifest.precision, cpu_flags()) if on_cpu else ("onnxruntime",)
    return next((name for name in order if name in installed), order[0])


def _opener(name: str) -> Opener:
    record = ENGINES.get(name)
    if record is None:
        raise EngineError(f"unknown engine {name!r} (known: auto, {', '.join(ENGINES)})")
    if not record.installed():
        raise EngineError(
            f"engine {name} needs the package {' or '.join(record.packages)}, which is not installed; "
            f"pip install 'rm-export[{record.extra}]'"
        )
    module: Any = import_module(f"rm_runtime.engines.{record.module}")
    opener: Opener = getattr(module, record.opener)
    return opener
