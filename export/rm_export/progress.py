"""Progress of an export on the console: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class ConsoleProgress:
    """A rm_export.bundle.Progress that writes to stderr. Phases under a second say nothing on a pipe."""

    _SECONDS_BETWEEN_LINES = 5.0

    def __init__(self) -> None:
        self._bar: tuple[RichProgress, TaskID] | None = None
        self._what, self._total, self._done = "", 0, 0
        self._began = self._told = time.monotonic()

    def begin(self, what: str, total: int) -> None:
        """A phase of `total` bytes begins; the previous one is over."""
        self._what, self._total, self._done = what, total, 0
        self._began = self._told = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            bar = Progress(
                "{task.description}",
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            bar.start()
            self._bar = (bar, bar.add_task(what, total=total))

    def advance(self, done: int) -> None:
        """`done` more bytes of it are done."""
        self._done += done
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=self._done)
            if self._done >= self._total:
                bar.stop()
                self._bar = None
            return
        now = time.monotonic()
        if now - self._told >= self._SECONDS_BETWEEN_LINES and self._done < self._total:
            self._told = now
            left = (now - self._began) * (self._total - self._done) / self._done
            share = 100 * self._done / self._total
            print(
                f"{self._what}: {share:.0f} % of {self._total / 2**20:.0f} MiB, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
