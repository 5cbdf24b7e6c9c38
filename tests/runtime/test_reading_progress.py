"""Progress over a file where nobody watches a terminal; tests/runtime/test_cli.py has the bar."""

from __future__ import annotations

import io
import os
from pathlib import Path

from rm_runtime.reading_progress import reading_progress


def test_elsewhere_than_on_a_terminal_a_line_is_told_every_ten_seconds(tmp_path: Path) -> None:
    path, told, seconds = tmp_path / "in", io.StringIO(), iter([0.0, 4.0, 12.0, 20.0, 25.0, 60.0])
    path.write_bytes(b"x" * 2**20)
    with path.open("rb") as stream, reading_progress(stream, told, lambda: next(seconds)) as advance:
        for _ in range(4):
            stream.read(2**18 - 10)
            advance()
        stream.read()
        advance()
    assert told.getvalue().splitlines() == [
        "scoring: 50 % of 1.0 MiB, 12 s left",
        "scoring: 100 % of 1.0 MiB, 0 s left",
    ]


def test_a_pipe_has_no_progress() -> None:
    ours, theirs = os.pipe()
    told = io.StringIO()
    with os.fdopen(ours, "rb") as stream, reading_progress(stream, told, lambda: 0.0) as advance:
        os.write(theirs, b"x")
        os.close(theirs)
        stream.read()
        advance()
    assert told.getvalue() == ""
