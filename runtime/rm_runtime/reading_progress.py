"""How far files were read: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TextIO

SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def reading_progress(
    total: int, read: Callable[[], int], told: TextIO, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[], None]]:
    """Yields a callable that shows on `told` how many bytes are `read()` of `total`, and what time is left.

    A total of 0 (a pipe has no size) shows nothing. Nothing is left of the bar at the end, and short work says nothing.
    """
    if not total:
        yield lambda: None
    elif told.isatty():
        with _bar(total, read, told) as advance:
            yield advance
    else:
        yield _lines(total, read, told, clock)


@contextlib.contextmanager
def _bar(total: int, read: Callable[[], int], told: TextIO) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=told), transient=True) as bar:
        task = bar.add_task("scoring", total=total)
        yield lambda: bar.update(task, completed=read())


def _lines(total: int, read: Callable[[], int], told: TextIO, clock: Callable[[], float]) -> Callable[[], None]:
    began = last = clock()

    def advance() -> None:
        nonlocal last
        now, done = clock(), read()
        if now - last >= SECONDS_BETWEEN_LINES and 0 < done < total:
            last = now
            left = (now - began) * (total - done) / done
            print(
                f"scoring: {100 * done / total:.0f} % of {total / 2**20:.1f} MiB, {left:.0f} s left",
                file=told,
                flush=True,
            )

    return advance
