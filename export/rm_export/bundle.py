"""Writing a bundle: streamed, hashed, fsynced, renamed into place. A killed export leaves no bundle or a whole one."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from rm_export.errors import CheckpointError, ExportError
from rm_export.tensors import Array, StreamedTensor, all_finite, stored_bytes
from rm_runtime.bundle import MANIFEST_NAME
from rm_runtime.manifest import FileRecord

INLINE_BYTES = 1024
"""Tensors below this stay inside the .onnx file, where engines read shape constants."""

_PAGE = 4096
_LINE = 64
_LARGE = 1 << 20


@dataclass(frozen=True)
class FolderKind:
    """What a folder is called, and the file in it by which it is known."""

    name: str
    marker: str


BUNDLE = FolderKind("bundle", MANIFEST_NAME)


class Progress(Protocol):
    """Told how an export goes on."""

    def begin(self, what: str, total: int, unit: str = "bytes") -> None:
        """A phase of `total` units begins."""

    def advance(self, done: int) -> None:
        """`done` more units of it are done."""

    def note(self, text: str) -> None:
        """Something the user should know."""


class Silent:
    """A Progress that says nothing."""

    def begin(self, what: str, total: int, unit: str = "bytes") -> None:
        pass

    def advance(self, done: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class HashedFile:
    """A new file whose size and sha256 are known when it is closed. Every byte passes through `write` once."""

    def __init__(self, path: Path, on_write: Callable[[int], None] | None = None) -> None:
        self._file = path.open("xb")
        self._digest = hashlib.sha256()
        self._on_write = on_write
        self.size = 0

    def write(self, piece: Any) -> int:
        written = self._file.write(piece)
        self._digest.update(piece)
        self.size += written
        if self._on_write is not None:
            self._on_write(written)
        return written

    def align(self, boundary: int) -> None:
        """Pad with zeros up to a multiple of `boundary`."""
        self.write(bytes(-self.size % boundary))

    def close(self) -> FileRecord:
        """Flush to the disk and tell what was written."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return FileRecord(self.size, self._digest.hexdigest())


def write_graph(model: ir.Model, folder: Path, name: str, progress: Progress) -> dict[str, FileRecord]:
    """Write `name` and `name`.data into the folder, one tensor in memory at a time.

    Raises CheckpointError for a weight that is not finite.
    """
    weights = _inline_small(model)
    progress.begin("writing weights", sum(value.const_value.nbytes for value in weights if value.const_value))
    location = f"{name}.data"
    data = HashedFile(folder / location, progress.advance)
    for value in weights:
        tensor = value.const_value
        assert tensor is not None
        data.align(_PAGE if tensor.nbytes >= _LARGE else _LINE)
        offset = data.size
        _stream(tensor, data)
        value.const_value = ir.ExternalTensor(
            location,
            offset,
            data.size - offset,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=value.name or "",
            base_dir=folder,
        )
    records = {location: data.close()}
    records[name] = write_file(folder, name, _serialised(model))
    return records


def write_second_graph(model: ir.Model, folder: Path, name: str, first: str) -> dict[str, FileRecord]:
    """Write `name`, a graph whose weights are those of the graph `first` in the same folder; nothing is written twice.

    A weight is found by its name. Raises ExportError if `first` has none of that name, type and shape.
    """
    stored = ir.load(folder / first).graph.initializers
    for value in _inline_small(model):
        wanted, known = value.const_value, stored.get(str(value.name))
        tensor = None if known is None else known.const_value
        if (
            wanted is None
            or not isinstance(tensor, ir.ExternalTensor)
            or (tensor.dtype, tensor.shape.numpy()) != (wanted.dtype, wanted.shape.numpy())
        ):
            raise ExportError(f"{name} reads the weight {value.name!r}, which {first} does not hold in that form")
        value.const_value = tensor
    return {name: write_file(folder, name, _serialised(model))}


def _inline_small(model: ir.Model) -> list[ir.Value]:
    """Initializers that belong into the data file; smaller streamed ones are read into the graph."""
    initializers = [value for value in model.graph.initializers.values() if value.const_value is not None]
    for value in initializers:
        tensor = value.const_value
        if isinstance(tensor, StreamedTensor) and tensor.nbytes < INLINE_BYTES:
            (whole,) = _finite_pieces(tensor)
            value.const_value = ir.Tensor(whole, dtype=tensor.dtype, name=value.name)
    return [value for value in initializers if value.const_value and value.const_value.nbytes >= INLINE_BYTES]


def _serialised(model: ir.Model) -> bytes:
    content: bytes = ir.serde.serialize_model(model).SerializeToString()
    return content


def _stream(tensor: ir.TensorProtocol, file: HashedFile) -> None:
    if not isinstance(tensor, StreamedTensor):
        file.write(tensor.tobytes())
        return
    for piece in _finite_pieces(tensor):
        file.write(stored_bytes(piece))


def _finite_pieces(tensor: StreamedTensor) -> Iterator[Array]:
    for piece in tensor.blocks():
        if tensor.dtype.is_floating_point() and not all_finite(piece):
            raise CheckpointError(f"tensor {tensor.name!r} holds NaN or infinity; the checkpoint is damaged")
        yield piece


def write_file(folder: Path, name: str, content: bytes) -> FileRecord:
    """Write one small file into the folder, fsynced."""
    file = HashedFile(folder / name)
    file.write(content)
    return file.close()


@contextmanager
def staged_folder(output: Path, force: bool, kind: FolderKind = BUNDLE) -> Iterator[Path]:
    """A folder beside `output` to write into; on success it becomes `output` in one rename, on failure it goes.

    force: replace an existing folder of that kind. Raises ExportError if `output` exists otherwise, or is something
    else. Folders of exports that were killed are cleared away.
    """
    output = output.absolute()
    check_replaceable(output, force, kind)
    output.parent.mkdir(parents=True, exist_ok=True)
    clear_dead_stages(output.parent, output.name)
    stage = output.parent / f".{output.name}.partial-{os.getpid()}"
    stage.mkdir()
    try:
        yield stage
        _sync_folder(stage)
        check_replaceable(output, force, kind)
        _put_in_place(stage, output)
    except OSError as error:
        raise ExportError(f"cannot write {output}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_replaceable(output: Path, force: bool, kind: FolderKind = BUNDLE) -> None:
    """Raises ExportError unless `output` is free, or an existing folder of that kind that may be replaced."""
    if not output.exists() and not output.is_symlink():
        return
    if not (output / kind.marker).is_file():
        raise ExportError(f"{output} exists and is not a {kind.name}; choose another -o, it is left as it is")
    if not force:
        raise ExportError(f"{output} exists; pass --force to replace it, or choose another -o")


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file's content in one rename."""
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _put_in_place(stage: Path, output: Path) -> None:
    if output.exists():
        _exchange(stage, output)  # `stage` now holds the old folder and is removed by the caller
    else:
        stage.rename(output)
    _sync_folder(output.parent)


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders atomically (Linux renameat2 with RENAME_EXCHANGE), else in two renames."""
    at_fdcwd, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        renameat2 = None
    if renameat2 and renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0:
        return
    aside = one.with_name(one.name + "-old")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)


def clear_dead_stages(folder: Path, name: str) -> None:
    """Remove the stages of `name` in a folder whose processes were killed."""
    for path in folder.glob(f".{name}.partial-*"):
        found = re.fullmatch(re.escape(f".{name}.partial-") + r"(\d+)(-old)?", path.name)
        if found and not _is_running(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
