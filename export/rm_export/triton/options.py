"""What an operator may choose, checked before anything is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rm_export.errors import ExportError

Backend = Literal["onnxruntime", "tensorrt", "python"]
Gpus = tuple[int, ...] | Literal["all"]
"""Numbers of GPUs; () = the CPU."""

BACKENDS: tuple[Backend, ...] = ("onnxruntime", "tensorrt", "python")


@dataclass(frozen=True)
class TritonOptions:
    """How a bundle is served by Triton. None = by the bundle, but for bounds of the queue, where it is none.

    name: of the model that clients ask; the others are named after it. backend: what runs the graph. gpus: an instance
    on each. instances: of the graph, on each GPU or on the CPU; fronts: of the Python models before it, processes of
    their own. max_batch: chats a request of the scoring model may have, and as many are joined; graph_batch: rows that
    the graph is given at once. queue_delay_us: how long a request may wait for others. queue_size: requests that may
    wait for a model; queue_timeout_us: how long, then they are refused. No bound by default, as any makes Triton's
    queue stall (docs/triton.md). priorities: levels, 1 is served first. threads: of an engine on the CPU. engine,
    batch_tokens: as in rm_runtime.load; the engine is for the backend python. model_version: the folder that Triton
    calls a version. execution_env: a conda-pack archive or folder with a Python that has rm_runtime, as Triton's
    EXECUTION_ENV_PATH.
    """

    name: str | None = None
    backend: Backend | None = None
    gpus: Gpus | None = None
    instances: int = 1
    fronts: int = 2
    max_batch: int = 128
    graph_batch: int = 32
    queue_delay_us: int = 0
    queue_size: int | None = None
    queue_timeout_us: int | None = None
    priorities: int = 0
    threads: int | None = None
    engine: str = "auto"
    batch_tokens: int | None = None
    model_version: int = 1
    execution_env: str | None = None

    def __post_init__(self) -> None:
        """Raises ExportError for a value that Triton would refuse."""
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise ExportError(f"the model name {self.name!r} may have letters, digits, '_', '-' and '.'; pass --name")
        for field in ("instances", "fronts", "max_batch", "graph_batch", "model_version"):
            if getattr(self, field) < 1:
                raise ExportError(f"{field}={getattr(self, field)}: at least 1")
        if isinstance(self.gpus, tuple) and len(set(self.gpus)) != len(self.gpus):
            raise ExportError(f"gpus={','.join(map(str, self.gpus))}: name each once; --instances runs several on each")
