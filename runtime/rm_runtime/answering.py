"""What the commands score and rank do: answer a stream, a file or a folder, and tell how it went."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from rm_runtime.bulk.files import FileJob, files_of_folder, one_file
from rm_runtime.bulk.inputs import START, read_chunks
from rm_runtime.bulk.pool import LocalPool
from rm_runtime.bulk.run import FileRun, Totals
from rm_runtime.bulk.settings import answer_settings
from rm_runtime.errors import RequestError
from rm_runtime.parquet import SUFFIX as PARQUET
from rm_runtime.reading_progress import reading_progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rm_runtime.bulk.pool import EnginePool
    from rm_runtime.bundle import Bundle
    from rm_runtime.jsonl import Answer

STREAM = "-"


@dataclass(frozen=True)
class RayOptions:
    """address: of the cluster, None = RAY_ADDRESS or one of this machine. actors: None = as many as have room."""

    address: str | None
    actors: int | None


def answer_stream(bundle: Path, source: str, output: str, *, ranking: bool, column_prefix: str, **options: Any) -> int:
    """Answer `source` in one go. source: a path, or - for stdin; output: a path, or - for stdout.

    Returns the exit status: 1 if a line failed. column_prefix: not used, as answers are JSON lines.
    """
    from rm_runtime.loading import load

    if output.endswith(PARQUET):
        raise RequestError(f"{output}: Parquet takes the columns of a Parquet file; name one with -i")
    answered = failed = 0
    with _opened_output(output) as sink, _opened_input(source) as stream:
        model = load(bundle, **options)
        shown = source != STREAM and not sink.isatty()
        total = os.fstat(stream.fileno()).st_size if shown else 0
        with reading_progress(total, stream.tell, sys.stderr) as advance:
            for answers in _answers(model, source, stream, ranking):
                sink.write("".join(f"{answer.text}\n" for answer in answers).encode("utf-8"))
                sink.flush()
                answered += len(answers)
                failed += sum(answer.failed for answer in answers)
                advance()
    _tell_failures(answered, failed, "lines", "the output" if output == STREAM else output)
    return 1 if failed else 0


def answer_one_file(bundle: Path, source: Path, output: Path, **arguments: Any) -> int:
    """Answer a file, or the rest of it. Returns the exit status: 1 if a line failed or the file cannot be read."""
    job = one_file(source, output)
    return _answer_jobs(bundle, [job], output, keeps_records=False, **arguments)


def answer_folder(bundle: Path, source: Path, output: Path, **arguments: Any) -> int:
    """Answer the files of a folder that are not answered yet. Returns the exit status: 1 if a line or a file failed."""
    jobs, others = files_of_folder(source, output)
    if others:
        _say(f"left out of {source}: {others[0].name}" + (f" and {len(others) - 1} more" if others[1:] else ""))
    return _answer_jobs(bundle, jobs, output, keeps_records=True, **arguments)


def _answer_jobs(
    bundle: Path,
    jobs: Sequence[FileJob],
    output: Path,
    *,
    ranking: bool,
    column_prefix: str,
    keeps_records: bool,
    engine: str,
    pool: RayOptions | None,
    **options: Any,
) -> int:
    from rm_runtime.bundle import open_bundle
    from rm_runtime.engines import chosen_engine

    opened = open_bundle(bundle)
    runs = chosen_engine(opened, options["device"]) if engine == "auto" else engine
    deciding = {**options, "column_prefix": column_prefix}
    with _opened_pool(opened, pool, engine=runs, **options) as engines:
        run = FileRun(
            engines,
            answer_settings(opened, runs, "rank" if ranking else "score", deciding),
            ranking=ranking,
            column_prefix=column_prefix,
            keeps_records=keeps_records,
            say=_say,
        )
        total = sum(job.source.stat().st_size for job in jobs)
        with reading_progress(total, lambda: run.bytes_read, sys.stderr) as advance:
            totals = run.answer_all(jobs, advance)
    return _status(totals, len(jobs), str(output), any(job.source.suffix == PARQUET for job in jobs))


@contextlib.contextmanager
def _opened_pool(bundle: Bundle, ray: RayOptions | None, **options: Any) -> Iterator[EnginePool]:
    """options: of load."""
    if ray is None:
        from rm_runtime.loading import load

        yield LocalPool(lambda: load(bundle.path, **options))
        return
    from rm_runtime.bulk.ray_pool import RayPool

    with RayPool(bundle, options, address=ray.address, actors=ray.actors, say=_say) as pool:
        yield pool


def _status(totals: Totals, files: int, output: str, of_rows: bool) -> int:
    _tell_failures(totals.answers, totals.failed, "rows" if of_rows else "lines", output)
    if totals.unread and files > 1:
        _say(f"error: {totals.unread} of {files} files are not answered; the same command answers what is left")
    return 1 if totals.failed or totals.unread else 0


def _tell_failures(answered: int, failed: int, unit: str, where: str) -> None:
    if failed:
        _say(f'error: {failed} of {answered} {unit} failed; {where} has an "error" for each')


def _say(text: str) -> None:
    click.echo(f"rm-runtime: {text}", err=True)


def _answers(model: Any, source: str, stream: BinaryIO, ranking: bool) -> Iterator[list[Answer]]:
    from rm_runtime.jsonl import answer_chunk, answer_lines

    if source.endswith(PARQUET):
        chunks = read_chunks(Path(source), START, ranking=ranking)
        return (answer_chunk(model, chunk) for chunk, _ in chunks)
    return answer_lines(model, stream, ranking=ranking)


@contextlib.contextmanager
def _opened_input(path: str) -> Iterator[BinaryIO]:
    if path == STREAM:
        yield sys.stdin.buffer
    else:
        with Path(path).open("rb") as stream:
            yield stream


@contextlib.contextmanager
def _opened_output(path: str) -> Iterator[BinaryIO]:
    """Where answers go. A file appears, or replaces the old one, once all is written, and only then."""
    if path == STREAM:
        yield sys.stdout.buffer
        return
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():  # /dev/null, a pipe: nothing to replace
        with target.open("wb") as stream:
            yield stream
        return
    written = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with written.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            shutil.copymode(target, written)
        written.replace(target)
    except BaseException:
        written.unlink(missing_ok=True)
        raise
