"""A bundle loaded as a library, in a process of its own: what the server's figures are compared with."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rm_runtime import load
from rm_runtime.json_requests import answer_requests, parse_request

Document = dict[str, Any]

_OPENED: list[Any] = []
"""In the process: the model."""


@dataclass(frozen=True)
class Took:
    """Wall time, and CPU time of the process."""

    seconds: float
    cpu_seconds: float


class DirectProcess:
    """Asks the model itself. A context; its process ends with it."""

    def __init__(self, bundle: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _open, (bundle, threads))

    def __enter__(self) -> DirectProcess:
        self._pool.submit(time.sleep, 0).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def all_at_once(self, documents: Sequence[Document]) -> Took:
        """All requests as one call."""
        return self._pool.submit(_took, documents).result()

    def one(self, document: Document) -> float:
        """Seconds of one request alone."""
        return self._pool.submit(_took, [document]).result().seconds

    def replies(self, documents: Sequence[Document]) -> list[Any]:
        """The JSON objects that answer the requests, each asked alone."""
        return self._pool.submit(_replies, documents).result()


def _open(bundle: Path, threads: int) -> None:
    _OPENED.append(load(bundle, threads=threads))


def _took(documents: Sequence[Document]) -> Took:
    requests = [parse_request(document) for document in documents]
    began, cpu = time.perf_counter(), time.process_time()
    answer_requests(_OPENED[0], requests)
    return Took(time.perf_counter() - began, time.process_time() - cpu)


def _replies(documents: Sequence[Document]) -> list[Any]:
    return [answer_requests(_OPENED[0], [parse_request(document)])[0] for document in documents]
