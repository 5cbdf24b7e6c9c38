"""How long an engine takes for what waits, by its turns of late."""

from __future__ import annotations

import time

_MEMORY = 0.8
"""What a turn leaves of the turns before it."""


class Pace:
    """Seconds an id of work. One thread takes turns, any may ask."""

    def __init__(self, seconds_per_token: float) -> None:
        """seconds_per_token: until turns tell; 0 = not known, and nothing takes time."""
        self._seconds, self._work = seconds_per_token, 1.0
        self._began = self._ends = 0.0

    def expected(self, work: int) -> float:
        """Seconds for so much work."""
        return work * self._seconds / self._work

    def left(self) -> float:
        """Seconds that the turn in work is expected to go on; 0 if it takes longer than that, or there is none."""
        return max(0.0, self._ends - time.monotonic())

    def begin(self, work: int) -> None:
        """A turn begins."""
        self._began = time.monotonic()
        self._ends = self._began + self.expected(work)

    def end(self, work: int) -> None:
        """It is over."""
        self._seconds = _MEMORY * self._seconds + time.monotonic() - self._began
        self._work = _MEMORY * self._work + work
        self._ends = 0.0
