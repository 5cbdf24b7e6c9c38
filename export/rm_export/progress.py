"""Progress of long work on the console: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class ConsoleProgress:
    """A rm_export.bundle.Progress that writes to stderr; leaving it as a context takes the bar away."""

    _SECONDS_BETWEEN_LINES = 5.0

    def __init__(self) -> None:
        self._bar: tuple[RichProgress, TaskID] | None = None
        self._what, self._total, self._done, self._unit = "", 0, 0, "bytes"
        self._began = self._told = time.monotonic()

    def __enter__(self) -> ConsoleProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def begin(self, what: str, total: int, unit: str = "bytes") -> None:
        """A phase of `total` units begins; the previous one is over."""
        self._stop()
        self._what, self._total, self._done, self._unit = what, total, 0, unit
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
        """`done` more units of it are done."""
        self._done += done
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=self._done)
            if self._done >= self._total:
                self._stop()
            return
        now = time.monotonic()
        if now - self._told >= self._SECONDS_BETWEEN_LINES and self._done < self._total:
            self._told = now
            left = (now - self._began) * (self._total - self._done) / self._done
            share = 100 * self._done / self._total
            whole = f"{self._total / 2**20:.0f} MiB" if self._unit == "bytes" else f"{self._total} {self._unit}"
            print(f"{self._what}: {share:.0f} % of {whole}, {left:.0f} s left", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """A line of its own."""
        self._stop()
        print(text, file=sys.stderr, flush=True)

    def follow(self, what: str, unit: str) -> Callable[[int, int], None]:
        """A callback (done, total) for work that counts from its own start."""

        def on_step(done: int, total: int) -> None:
            if not self._total:
                self.begin(what, total, unit)
            self.advance(done - self._done)

        return on_step

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None
