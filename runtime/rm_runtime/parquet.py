"""Parquet files read row by row, in bounded memory (extra `parquet`)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from rm_runtime.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SUFFIX = ".parquet"

_ROWS_AT_ONCE = 256
_BUFFER_BYTES = 2**20  # with a buffer, pages of a row group are read as they are needed and not all at once


def open_parquet(path: Path) -> Any:
    """The pyarrow.parquet.ParquetFile of a path. Raises RequestError: no pyarrow, no such file, not Parquet."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise RequestError(f"{path} is a Parquet file; pip install 'rm-export[parquet]' to read it") from None
    with reading(path):
        return parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Makes a RequestError that names `path` of what pyarrow says of a damaged file."""
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ArrowException) as error:
        raise RequestError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def read_rows(path: Path, columns: Sequence[str], start: int = 0) -> Iterator[dict[str, Any] | RequestError]:
    """The rows of a file from row `start` (0-based) on, as Python values of those of `columns` that it has.

    A row whose text is not UTF-8 is a RequestError in its place. Raises RequestError as open_parquet does, also later,
    where the file is damaged further on.
    """
    stored = open_parquet(path)
    wanted = [name for name in columns if name in stored.schema_arrow.names]
    skipped = start
    for group in range(stored.num_row_groups):
        rows = stored.metadata.row_group(group).num_rows
        if skipped >= rows:
            skipped -= rows
        elif not wanted:
            yield from ({} for _ in range(rows - skipped))
            skipped = 0
        else:
            with reading(path):
                for batch in stored.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=wanted):
                    yield from _values(batch.slice(skipped))
                    skipped = max(0, skipped - len(batch))


def _values(batch: Any) -> list[dict[str, Any] | RequestError]:
    try:
        values: list[dict[str, Any] | RequestError] = batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            return [RequestError(f"not UTF-8: byte 0x{error.object[error.start]:02x} at byte {error.start + 1}")]
        return [value for row in range(len(batch)) for value in _values(batch.slice(row, 1))]
    return values
