"""A file of requests -> chunks that are answered as a whole, from any chunk's end on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rm_runtime.errors import RequestError
from rm_runtime.jsonl import Line, chunks_of, parse_document, read_lines
from rm_runtime.parquet import SUFFIX, open_parquet, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REQUEST_COLUMNS = ("messages", "responses", "input", "candidates", "instruction")
"""Columns of a Parquet file that a request is made of; the others only travel along."""


@dataclass(frozen=True)
class Position:
    """How far a file was answered. lines: lines of text, blank ones included, or rows of a table.

    offset: bytes of the file; of a Parquet file the share of its bytes that its rows are, which only progress shows.
    """

    lines: int = 0
    offset: int = 0


START = Position()


def read_chunks(path: Path, start: Position, *, ranking: bool) -> Iterator[tuple[list[Line], Position]]:
    """The requests after `start`, a chunk at a time, and where each chunk ends; `start` is the start or such an end.

    path: JSON lines, or a Parquet file if its name ends so, with columns that rm_runtime.json_requests names.
    Raises RequestError if the file cannot be read.
    """
    return (_read_parquet if path.suffix == SUFFIX else _read_json_lines)(path, start, ranking)


def _read_json_lines(path: Path, start: Position, ranking: bool) -> Iterator[tuple[list[Line], Position]]:
    try:
        source = path.open("rb")
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None
    with source:
        source.seek(start.offset)
        for chunk in chunks_of(read_lines(source, ranking=ranking, before=start.lines)):
            yield chunk, Position(chunk[-1].number, source.tell())


def _read_parquet(path: Path, start: Position, ranking: bool) -> Iterator[tuple[list[Line], Position]]:
    stored = open_parquet(path)
    names = stored.schema_arrow.names
    if "messages" not in names and "input" not in names:
        raise RequestError(
            f'{path} has no column "messages" (it has {", ".join(names) or "none"}); rename the one with the chats'
        )
    total, size = stored.metadata.num_rows, path.stat().st_size
    rows = enumerate(read_rows(path, REQUEST_COLUMNS, start.lines), start=start.lines + 1)
    for chunk in chunks_of(_parse_row(number, row, ranking) for number, row in rows):
        done = chunk[-1].number
        yield chunk, Position(done, size * done // total)


def _parse_row(number: int, row: dict[str, Any] | RequestError, ranking: bool) -> Line:
    if isinstance(row, RequestError):
        return Line(number, {}, row, 0)
    return parse_document(number, row, _text_size(row), ranking)


def _text_size(value: object) -> int:
    """Characters of all texts in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_text_size, value.values()))
    return sum(map(_text_size, value)) if isinstance(value, list) else 0
