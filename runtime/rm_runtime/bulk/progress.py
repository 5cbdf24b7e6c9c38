"""The record beside an output: what was asked, of which input, and how much of the answers is on disk.

Answers are flushed to the disk before the record that counts them, and a record replaces the last one in one step. So
at any moment the record tells of whole chunks that are there; what lies behind them in the file is cut off.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rm_runtime.bulk.inputs import START, Position
from rm_runtime.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_FORMAT = 1


@dataclass(frozen=True)
class FileState:
    """What shows that a file is still the one that was read. modified: nanoseconds."""

    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Raises RequestError if there is no such file."""
        try:
            status = path.stat()
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror}") from None
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Progress:
    """How far a file was answered.

    settings: what was asked, by name; source: the input; position: how far it was answered; answer_bytes: their size on
    disk; answers, failed: how many lines or rows they answer, and how many of these with an error; output_bytes: the
    size of the whole output, None until it is ready to take its name.
    """

    settings: Mapping[str, str]
    source: FileState
    position: Position = START
    answer_bytes: int = 0
    answers: int = 0
    failed: int = 0
    output_bytes: int | None = None


def read_progress(path: Path) -> Progress | None:
    """The record, None if there is none or what is there is no record of ours."""
    try:
        record = json.loads(path.read_bytes())
        if record.pop("format") != _FORMAT:
            return None
        source, position = FileState(**record.pop("source")), Position(**record.pop("position"))
        return Progress(source=source, position=position, **record)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def write_progress(path: Path, progress: Progress) -> None:
    """Replace the record, on the disk before this returns."""
    written = path.with_name(f"{path.name}.new")
    with written.open("w", encoding="utf-8") as file:
        json.dump({"format": _FORMAT, **asdict(progress)}, file)
        file.flush()
        os.fsync(file.fileno())
    written.replace(path)


def flush_folder(folder: Path) -> None:
    """Names that were given or taken in a folder, on the disk before this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(path: Path, output: Path) -> Iterator[None]:
    """Hold the lock file at `path`, which ends with the process that holds it.

    Raises RequestError if another process holds it, naming the `output` that it works on.
    """
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise RequestError(
                f"{output} is being written by another run; wait for it, or name another output"
            ) from None
        if _is_at(file, path):
            break
        file.close()  # its holder removed it between our opening and locking it
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _is_at(file: Any, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
