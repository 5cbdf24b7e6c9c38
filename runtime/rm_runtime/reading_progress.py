"""How far a file was read: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, TextIO

SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def reading_progress(
    stream: BinaryIO, told: TextIO, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[], None]]:
    """Yields a callable that shows on `told` where `stream` was read to, in bytes, and what time is left.

    A stream without a size (a pipe) shows nothing. Nothing is left of the bar at the end, and short work says nothing.
    """
    total = os.fstat(stream.fileno()).st_size
    if not total:
        yield lambda: None
    elif told.isatty():
        with _bar(stream, told, total) as advance:
            yield advance
    else:
        yield _lines(stream, told, total, clock)


@contextlib.contextmanager
def _bar(stream: BinaryIO, told: TextIO, total: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=told), transient=True) as bar:
        task = bar.add_task("scoring", total=total)
        yield lambda: bar.update(task, completed=stream.tell())


def _lines(stream: BinaryIO, told: TextIO, total: int, clock: Callable[[], float]) -> Callable[[], None]:
    began = last = clock()

    def advance() -> None:
        nonlocal last
        now, done = clock(), stream.tell()
        if now - last >= SECONDS_BETWEEN_LINES and 0 < done < total:
            last = now
            left = (now - began) * (total - done) / done
            print(
                f"scoring: {100 * done / total:.0f} % of {total / 2**20:.1f} MiB, {left:.0f} s left",
                file=told,
                flush=True,
            )

    return advance
