"""A run over files: each is answered once, whatever stopped the runs before."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rm_runtime.bulk.columns import check_columns, write_with_answers
from rm_runtime.bulk.inputs import answer_file
from rm_runtime.bulk.progress import FileState, Progress, flush_folder, held, read_progress, write_progress
from rm_runtime.bulk.settings import differing
from rm_runtime.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rm_runtime.bulk.files import FileJob


@dataclass(frozen=True)
class Totals:
    """What a run found or made: lines or rows answered, those of them with an error, and files that are not done."""

    answers: int = 0
    failed: int = 0
    unread: int = 0


class FileRun:
    """Answers files one after the other.

    load: opens the model, called once there is something to answer. settings: what decides an answer
    (rm_runtime.bulk.settings). keeps_records: a finished output keeps its record, by which a later run knows it; an
    output without one is then somebody else's and not replaced. say: tells the user what is not done anew, or is.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        settings: Mapping[str, str],
        *,
        ranking: bool,
        column_prefix: str,
        keeps_records: bool,
        say: Callable[[str], None],
    ) -> None:
        self._load = load
        self._settings = settings
        self._ranking = ranking
        self._column_prefix = column_prefix
        self._keeps_records = keeps_records
        self._say = say
        self._bytes_before = 0
        self.bytes_read = 0

    @cached_property
    def _model(self) -> Any:
        return self._load()

    def answer_all(self, jobs: Sequence[FileJob], advance: Callable[[], None]) -> Totals:
        """Answer each file that is not answered yet. advance: called when `bytes_read` has grown.

        A file that cannot be read is told and left; the others are answered. Raises what is not one file's fault.
        """
        totals = Totals()
        for job in jobs:
            try:
                progress = self.answer(job, advance)
            except RequestError as error:
                self._say(f"error: {error}")
                totals = replace(totals, unread=totals.unread + 1)
            else:
                totals = Totals(totals.answers + progress.answers, totals.failed + progress.failed, totals.unread)
            self._bytes_before += job.source.stat().st_size
            self._show(0, advance)
        return totals

    def answer(self, job: FileJob, advance: Callable[[], None]) -> Progress:
        """Answer one file, or the rest of it, and give its output its name.

        Raises RequestError if the file cannot be read, or its output is not ours to write.
        """
        job.output.parent.mkdir(parents=True, exist_ok=True)
        with held(job.lock, job.output):
            progress = self._continued(job)
            if progress is None:
                progress = self._started(job)
            if progress.output_bytes is None:
                progress = self._finished(job, self._answered(job, progress, advance))
            self._publish(job)
        return progress

    def _continued(self, job: FileJob) -> Progress | None:
        """What an earlier run left that this one may go on from, if it is what this one would have made."""
        progress = read_progress(job.progress)
        if progress is None:
            if self._keeps_records and job.output.exists():
                raise RequestError(f"{job.output} is there, and no run has recorded it; remove it or choose another -o")
            return None
        reason = self._outdated(job, progress)
        if reason is not None:
            self._say(f"{job.output} is made anew: {reason}")
            return None
        if progress.output_bytes is None:
            self._say(f"{job.output} goes on after {progress.answers} answers of an earlier run")
        return progress

    def _outdated(self, job: FileJob, progress: Progress) -> str | None:
        others = differing(self._settings, progress.settings)
        if others:
            return f"an earlier run had another {' and another '.join(others)}"
        if progress.output_bytes is not None and not job.staged.exists():
            if not job.output.exists() or job.output.stat().st_size != progress.output_bytes:
                return "it was removed or changed since"
            if job.output.samefile(job.source):
                return None
        elif progress.answer_bytes > (job.answers.stat().st_size if job.answers.exists() else 0):
            return "its unfinished answers were removed or changed since"
        if FileState.of(job.source) != progress.source:
            return f"{job.source} has changed since"
        return None

    def _started(self, job: FileJob) -> Progress:
        """A record of no answers, which ends the validity of what lies there."""
        if job.in_columns:
            check_columns(job.source, self._column_prefix)
        _ = self._model  # fails before anything is written
        progress = Progress(self._settings, FileState.of(job.source))
        write_progress(job.progress, progress)
        job.staged.unlink(missing_ok=True)
        return progress

    def _answered(self, job: FileJob, progress: Progress, advance: Callable[[], None]) -> Progress:
        """All of the input answered in `job.answers`."""
        job.answers.touch()
        with job.answers.open("r+b") as sink:
            sink.truncate(progress.answer_bytes)
            sink.seek(progress.answer_bytes)
            self._show(progress.position.offset, advance)
            for answers, position in answer_file(self._model, job.source, progress.position, ranking=self._ranking):
                sink.write("".join(f"{answer.text}\n" for answer in answers).encode("utf-8"))
                sink.flush()
                os.fsync(sink.fileno())
                progress = replace(
                    progress,
                    position=position,
                    answer_bytes=sink.tell(),
                    answers=progress.answers + len(answers),
                    failed=progress.failed + sum(answer.failed for answer in answers),
                )
                write_progress(job.progress, progress)
                self._show(position.offset, advance)
        if FileState.of(job.source) != progress.source:
            raise RequestError(f"{job.source} has changed while it was answered; run the same again")
        return progress

    def _finished(self, job: FileJob, progress: Progress) -> Progress:
        """The output, staged."""
        if job.in_columns:
            write_with_answers(job.source, job.answers, job.staged, self._column_prefix)
            with job.staged.open("rb") as file:
                os.fsync(file.fileno())
        progress = replace(progress, output_bytes=job.staged.stat().st_size)
        write_progress(job.progress, progress)
        flush_folder(job.output.parent)
        return progress

    def _publish(self, job: FileJob) -> None:
        if job.staged.exists():
            if job.output.exists():
                shutil.copymode(job.output, job.staged)
            job.staged.replace(job.output)
            flush_folder(job.output.parent)
        job.answers.unlink(missing_ok=True)
        if not self._keeps_records:
            job.progress.unlink()

    def _show(self, offset: int, advance: Callable[[], None]) -> None:
        self.bytes_read = self._bytes_before + offset
        advance()
