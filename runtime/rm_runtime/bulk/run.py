"""A run over files: each is answered once, whatever stopped the runs before."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

from rm_runtime.bulk.columns import check_columns, write_with_answers
from rm_runtime.bulk.inputs import START, Position, read_chunks
from rm_runtime.bulk.pool import Chunk
from rm_runtime.bulk.progress import FileState, Progress, flush_folder, held, read_progress, write_progress
from rm_runtime.bulk.settings import differing
from rm_runtime.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rm_runtime.bulk.files import FileJob
    from rm_runtime.bulk.pool import EnginePool
    from rm_runtime.jsonl import Answer


@dataclass(frozen=True)
class Totals:
    """What a run found or made: lines or rows answered, those of them with an error, and files that are not done."""

    answers: int = 0
    failed: int = 0
    unread: int = 0


@dataclass
class _Work:
    """A file that answers are made for. held: what is released when it is done with; sink: `job.answers`, which takes
    more of them, None if there is nothing left to answer."""

    job: FileJob
    held: contextlib.ExitStack
    progress: Progress
    sink: BinaryIO | None = None


@dataclass(frozen=True)
class _Read:
    """Where a chunk ends. One without lines is the end of its file; failure: why it could not be read up to there."""

    job: FileJob
    work: _Work | None
    position: Position = START
    failure: RequestError | None = None


class FileRun:
    """Answers files, each in the order of its lines and one after the other; a pool may read ahead of its answers.

    pool: what answers (rm_runtime.bulk.pool), opened once there is something to answer. settings: what decides an
    answer (rm_runtime.bulk.settings). keeps_records: a finished output keeps its record, by which a later run knows it;
    an output without one is then somebody else's and not replaced. say: tells the user what is not done anew, or is.
    """

    def __init__(
        self,
        pool: EnginePool,
        settings: Mapping[str, str],
        *,
        ranking: bool,
        column_prefix: str,
        keeps_records: bool,
        say: Callable[[str], None],
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._ranking = ranking
        self._column_prefix = column_prefix
        self._keeps_records = keeps_records
        self._say = say
        self._bytes_before = 0
        self.bytes_read = 0

    def answer_all(self, jobs: Sequence[FileJob], advance: Callable[[], None]) -> Totals:
        """Answer each file that is not answered yet. advance: called when `bytes_read` has grown.

        A file that cannot be read is told and left; the others are answered. Raises what is not one file's fault.
        """
        totals = Totals()
        with contextlib.ExitStack() as all_held:
            chunks = self._chunks(jobs, all_held)
            for chunk, answers in self._pool.answer(chunks):
                read = chunk.mark
                if answers:
                    self._write(read, answers)
                    self._show(read.position.offset, advance)
                    continue
                try:
                    progress = self._ended(read)
                except RequestError as error:
                    self._say(f"error: {error}")
                    totals = replace(totals, unread=totals.unread + 1)
                else:
                    totals = Totals(totals.answers + progress.answers, totals.failed + progress.failed, totals.unread)
                self._bytes_before += read.job.source.stat().st_size
                self._show(0, advance)
        return totals

    def _chunks(self, jobs: Sequence[FileJob], all_held: contextlib.ExitStack) -> Iterator[Chunk[_Read]]:
        """What is to be asked of each file, and its end."""
        for job in jobs:
            work, failure = None, None
            held_here = all_held.enter_context(contextlib.ExitStack())
            try:
                work = self._begun(job, held_here)
                if work.sink is not None:
                    for lines, position in read_chunks(job.source, work.progress.position, ranking=self._ranking):
                        yield Chunk(job.source, lines, _Read(job, work, position))
            except RequestError as error:
                failure = error
                if work is None:
                    held_here.close()
            yield Chunk(job.source, [], _Read(job, work, failure=failure))

    def _begun(self, job: FileJob, held_here: contextlib.ExitStack) -> _Work:
        """Raises RequestError if the file cannot be read, or its output is not ours to write."""
        job.output.parent.mkdir(parents=True, exist_ok=True)
        held_here.enter_context(held(job.lock, job.output))
        progress = self._continued(job)
        if progress is None:
            progress = self._started(job)
        if progress.output_bytes is not None:
            return _Work(job, held_here, progress)
        self._pool.open()
        job.answers.touch()
        sink = held_here.enter_context(job.answers.open("r+b"))
        sink.truncate(progress.answer_bytes)
        sink.seek(progress.answer_bytes)
        return _Work(job, held_here, progress, sink)

    def _write(self, read: _Read, answers: Sequence[Answer]) -> None:
        """A chunk's answers, on the disk before the record that counts them."""
        work = read.work
        assert work is not None
        assert work.sink is not None
        work.sink.write("".join(f"{answer.text}\n" for answer in answers).encode("utf-8"))
        work.sink.flush()
        os.fsync(work.sink.fileno())
        work.progress = replace(
            work.progress,
            position=read.position,
            answer_bytes=work.sink.tell(),
            answers=work.progress.answers + len(answers),
            failed=work.progress.failed + sum(answer.failed for answer in answers),
        )
        write_progress(work.job.progress, work.progress)

    def _ended(self, read: _Read) -> Progress:
        """The output of a file that is answered has its name. Raises RequestError if the file could not be read."""
        work = read.work
        if work is None:
            assert read.failure is not None
            raise read.failure
        with work.held:
            if read.failure is not None:
                raise read.failure
            if work.progress.output_bytes is None:
                if FileState.of(work.job.source) != work.progress.source:
                    raise RequestError(f"{work.job.source} has changed while it was answered; run the same again")
                work.progress = self._finished(work.job, work.progress)
            self._publish(work.job)
        return work.progress

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
        self._pool.open()  # fails before anything is written
        progress = Progress(self._settings, FileState.of(job.source))
        write_progress(job.progress, progress)
        job.staged.unlink(missing_ok=True)
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
