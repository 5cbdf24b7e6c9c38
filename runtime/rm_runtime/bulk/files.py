"""Which files are answered, and where their answers go."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rm_runtime.errors import RequestError
from rm_runtime.parquet import SUFFIX as PARQUET

SUFFIXES = (".jsonl", PARQUET)


@dataclass(frozen=True)
class FileJob:
    """One file and the file of its answers. Work in progress is in hidden files beside the output, which readers of
    folders leave out."""

    source: Path
    output: Path

    @property
    def answers(self) -> Path:
        """JSON lines, whole chunks and perhaps a piece of one more."""
        return self._hidden("answers")

    @property
    def progress(self) -> Path:
        """How much of `answers` holds, and what was asked (rm_runtime.bulk.progress)."""
        return self._hidden("progress")

    @property
    def staged(self) -> Path:
        """The output before it takes its name."""
        return self._hidden("staged") if self.in_columns else self.answers

    @property
    def lock(self) -> Path:
        """Held by the run that works on this output."""
        return self._hidden("lock")

    @property
    def in_columns(self) -> bool:
        """The output is the input with columns added."""
        return self.output.suffix == PARQUET

    def _hidden(self, kind: str) -> Path:
        return self.output.with_name(f".{self.output.name}.{kind}")


def one_file(source: Path, output: Path) -> FileJob:
    """The job of a single file; an output that is a link stays one. Raises RequestError for JSON lines as Parquet."""
    if output.suffix == PARQUET and source.suffix != PARQUET:
        raise RequestError(f"{output}: Parquet takes the columns of a Parquet input, {source} is none; name it .jsonl")
    return FileJob(source, Path(os.path.realpath(output)))


def files_of_folder(source: Path, output: Path) -> tuple[list[FileJob], list[Path]]:
    """The files below `source` that hold requests, in the order of their names, and those that do not.

    Each has its output at the same place below `output`. Hidden files and folders are no part of it. Raises
    RequestError if `output` is `source` or lies in it, where a second run would take answers for requests, or if there
    is nothing to answer.
    """
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(source)):
        raise RequestError(f"{output} lies in {source}, whose files are read; choose a folder outside of it")
    found = sorted(path for path in source.rglob("*") if path.is_file() and not _hidden(path.relative_to(source)))
    jobs = [FileJob(path, output / path.relative_to(source)) for path in found if path.suffix in SUFFIXES]
    if not jobs:
        raise RequestError(f"{source} holds no file that ends in {' or '.join(SUFFIXES)}")
    return jobs, [path for path in found if path.suffix not in SUFFIXES]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
