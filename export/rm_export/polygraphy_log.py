"""Polygraphy's log, caught instead of printed: its logger is one for the whole process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class PolygraphyLog(logging.Handler):
    """What Polygraphy, and TensorRT through it, said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        self.lines.append(message)
        if record.levelno == logging.ERROR:
            self.errors.append(message)


@contextmanager
def caught_log() -> Iterator[PolygraphyLog]:
    """Nothing is printed inside; what was set before is set again after it."""
    from polygraphy.logger import G_LOGGER

    log, logger = PolygraphyLog(), logging.getLogger("Polygraphy")
    kept = (G_LOGGER.use_python_logging_system, logger.propagate, logger.level)
    G_LOGGER.use_python_logging_system, logger.propagate = True, False
    G_LOGGER.colors = False  # else it prints that a package for them is missing
    logger.setLevel(logging.INFO)
    logger.addHandler(log)
    try:
        yield log
    finally:
        logger.removeHandler(log)
        G_LOGGER.use_python_logging_system, logger.propagate, logger.level = kept
