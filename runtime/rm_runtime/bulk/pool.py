"""What answers the chunks of a run: the engine of this process here, those of other machines in ray_pool.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from rm_runtime.jsonl import answer_chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rm_runtime.jsonl import Answer, Line

Mark = TypeVar("Mark")


@dataclass(frozen=True)
class Chunk(Generic[Mark]):
    """Requests that are answered as a whole.

    source: their file; lines: none where nothing is asked, e.g. at a file's end; mark: what its asker knows it by.
    """

    source: Path
    lines: Sequence[Line]
    mark: Mark


class EnginePool(Protocol):
    """Answers chunks in their order. It may take chunks before those that it took are answered, and never writes a
    file: only what its caller has written counts as answered."""

    def open(self) -> None:
        """Called once there is something to answer, and again. Raises what hinders it, e.g. BundleError."""

    def answer(self, chunks: Iterator[Chunk[Mark]]) -> Iterator[tuple[Chunk[Mark], list[Answer]]]:
        """Each chunk with its answers, in order; none where it has no lines. Raises what is not one line's fault."""


class LocalPool:
    """One engine in this process. load: opens the model."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load

    @cached_property
    def _model(self) -> Any:
        return self._load()

    def open(self) -> None:
        """Load the model, once."""
        _ = self._model

    def answer(self, chunks: Iterator[Chunk[Mark]]) -> Iterator[tuple[Chunk[Mark], list[Answer]]]:
        """Takes a chunk when the one before is done with."""
        for chunk in chunks:
            yield chunk, answer_chunk(self._model, chunk.lines) if chunk.lines else []
