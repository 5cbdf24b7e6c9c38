"""Engines by name. An engine's package is imported only when it is used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from rm_runtime.bundle import Bundle
from rm_runtime.engines.protocol import Arrays, Engine
from rm_runtime.errors import EngineError

__all__ = ["ENGINES", "Arrays", "Engine", "open_engine"]

ENGINES = {
    # name: (module of ours, package it needs, what to install)
    "onnxruntime": ("rm_runtime.engines.onnxruntime_engine", "onnxruntime", "pip install 'rm-export[cpu]'"),
}


def open_engine(bundle: Bundle, engine: str = "auto", threads: int | None = None, device: str | None = None) -> Engine:
    """Open the bundle's plain graph in an engine.

    engine: "auto" takes the first installed one that runs this bundle. threads: how many the engine may use, None =
    all that this process may run on. device: "cpu", "cuda" or "cuda:1", None = the engine's best for this bundle.
    Raises EngineError if none is installed, or the chosen one cannot run the bundle.
    """
    if threads is not None and threads < 1:
        raise EngineError(f"threads={threads}: an engine needs at least one")
    if engine != "auto":
        return _opener(engine)(bundle, threads, device)
    installed = [name for name, (_, package, _) in ENGINES.items() if find_spec(package)]
    if not installed:
        hints = " or ".join(install for _, _, install in ENGINES.values())
        raise EngineError(f"no engine is installed; {hints}")
    return _opener(installed[0])(bundle, threads, device)


def _opener(name: str) -> Callable[[Bundle, int | None, str | None], Engine]:
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r} (known: auto, {', '.join(ENGINES)})")
    module, package, install = ENGINES[name]
    if not find_spec(package):
        raise EngineError(f"engine {name} needs the package {package}, which is not installed; {install}")
    opened: Any = import_module(module)
    opener: Callable[[Bundle, int | None, str | None], Engine] = opened.open_bundle_graph
    return opener
