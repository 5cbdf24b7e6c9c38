"""Runs over files that are killed at their n-th step on the disk, for every n, and then run again.

    python killed_runs.py FOLDER     FOLDER/input, answered into FOLDER/<n>/output; FOLDER/<n>/asked has what was scored

Every run is a process of its own, forked from one that has no threads.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401  here once and not in every run

import rm_runtime.jsonl
from rm_runtime.bulk.files import files_of_folder
from rm_runtime.bulk.pool import LocalPool
from rm_runtime.bulk.run import FileRun, Totals
from rm_runtime.errors import RewardModelError, UnscorableError
from rm_runtime.families.pointwise import PointwiseModel
from rm_runtime.results import Score

CHUNK_LINES = 4


class Scorer(PointwiseModel):
    """Scores by the length of the last message and, as real batches do in the last digits, by what is asked along."""

    def __init__(self, asked: Callable[[str], object] = lambda _: None) -> None:
        self._asked = asked

    def score(self, conversations: Any, errors: str = "raise") -> list[Any]:
        answers = [messages[-1]["content"] for messages in conversations]
        for answer in answers:
            self._asked(answer)
        return [self._score(answer, len(answers)) for answer in answers]

    @staticmethod
    def _score(answer: str, asked_along: int) -> Score | RewardModelError:
        return UnscorableError("it is bad") if "bad" in answer else Score(len(answer) + asked_along / 1000)


def answer_folder(source: Path, output: Path, load: Callable[[], Any], **changed: Any) -> tuple[Totals, list[str]]:
    """A run over a folder, and what it said."""
    said: list[str] = []
    options = {"settings": {"bundle": "a"}, "ranking": False, "column_prefix": "", "keeps_records": True, **changed}
    run = FileRun(LocalPool(load), say=said.append, **options)
    jobs, _ = files_of_folder(source, output)
    return run.answer_all(jobs, lambda: None), said


def _killed_at(step: int) -> None:
    """Every call that makes something last is two steps: the moment before and the moment after it."""
    steps = itertools.count(1)

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **options)
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    os.fsync = dying(os.fsync)
    Path.replace = dying(Path.replace)  # type: ignore[method-assign]
    Path.unlink = dying(Path.unlink)  # type: ignore[method-assign]


def _run(source: Path, folder: Path, step: int | None) -> int:
    """Exit status of a run in a process of its own, negative for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        rm_runtime.jsonl.CHUNK_LINES = CHUNK_LINES
        if step is not None:
            _killed_at(step)
        with (folder / "asked").open("ab", buffering=0) as log:
            answer_folder(source, folder / "output", lambda: Scorer(lambda answer: log.write(f"{answer}\n".encode())))
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def main(folder: Path) -> int:
    for step in itertools.count(1):
        work = folder / str(step)
        work.mkdir()
        status = _run(folder / "input", work, step)
        if status != -signal.SIGKILL:
            shutil.rmtree(work)
            return status
        for unfinished in (work / "output").glob(".*.answers"):
            if (work / "output" / unfinished.name.replace("answers", "progress")).read_bytes().count(b"null"):
                with unfinished.open("ab") as file:
                    file.write(b'{"score": 1')  # the piece of a chunk that was being written
        if _run(folder / "input", work, None):
            return 1
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
