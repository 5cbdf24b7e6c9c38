"""Progress over files where nobody watches a terminal; tests/runtime/test_cli.py has the bar."""

from __future__ import annotations

import io

from rm_runtime.reading_progress import reading_progress


def test_elsewhere_than_on_a_terminal_a_line_is_told_every_ten_seconds() -> None:
    told, seconds = io.StringIO(), iter([0.0, 4.0, 12.0, 20.0, 25.0, 60.0])
    read = iter([2**18 - 10, 2**19 - 20, 2**20 - 2**18 - 30, 2**20 - 40, 2**20])
    with reading_progress(2**20, lambda: next(read), told, lambda: next(seconds)) as advance:
        for _ in range(5):
            advance()
    assert told.getvalue().splitlines() == [
        "scoring: 50 % of 1.0 MiB, 12 s left",
        "scoring: 100 % of 1.0 MiB, 0 s left",
    ]


def test_a_pipe_has_no_progress() -> None:
    told = io.StringIO()
    with reading_progress(0, lambda: 100, told, lambda: 0.0) as advance:
        advance()
    assert told.getvalue() == ""
