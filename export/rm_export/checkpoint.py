"""A checkpoint as data: config.json and safetensors headers are read, nothing in it is ever executed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import onnx_ir as ir

from rm_export.errors import CheckpointError
from rm_export.tensors import FileTensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_DTYPES = {
    "F64": ir.DataType.DOUBLE,
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "I64": ir.DataType.INT64,
    "I32": ir.DataType.INT32,
    "U8": ir.DataType.UINT8,
    "I8": ir.DataType.INT8,
    "BOOL": ir.DataType.BOOL,
}
_MAX_HEADER = 100 * 1024 * 1024  # the safetensors format's own bound
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}\.safetensors")

SINGLE_FILE = "model.safetensors"
"""All weights in one file. Where it exists, transformers reads it and no index."""

INDEX_FILE = "model.safetensors.index.json"
"""Says which shard holds which tensor."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint folder.

    folder: where its files lie; id: what the user named it (a hub id or the folder); revision: the commit for
    a hub id, else None. config: config.json, parsed. config_sha256: of its bytes. tensors: every stored
    tensor by name, header read, bytes on demand.
    """

    folder: Path
    id: str
    revision: str | None
    config: Mapping[str, Any]
    config_sha256: str
    tensors: Mapping[str, FileTensor]

    @property
    def architecture(self) -> str:
        """config.json's first entry of `architectures`, or "" if it names none."""
        names = self.config.get("architectures")
        return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""

    def json_file(self, name: str) -> dict[str, Any]:
        """A JSON object beside config.json, {} if there is no such file."""
        path = self.folder / name
        return read_json_object(path) if path.is_file() else {}


def open_checkpoint(folder: Path, id: str | None = None, revision: str | None = None) -> Checkpoint:
    """Open a checkpoint folder in the hub's layout.

    Raises CheckpointError if config.json or the safetensors files are missing or damaged, or if the weights
    are only there as pickles.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; pass a checkpoint folder or a hub id like owner/name")
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(f"{folder} holds no config.json; pass a folder in the Hugging Face layout")
    config = read_json_object(config_path)
    digest = hashlib.sha256(config_path.read_bytes()).hexdigest()
    return Checkpoint(folder, id or str(folder), revision, config, digest, read_tensors(folder))


def read_tensors(folder: Path) -> dict[str, FileTensor]:
    """Every tensor of the folder's safetensors files: model.safetensors, else the shards its index names.

    That is transformers' order. Raises CheckpointError where files are missing, damaged or pickles.
    """
    if (folder / SINGLE_FILE).is_file():
        return read_safetensors_header(folder / SINGLE_FILE)
    if (folder / INDEX_FILE).is_file():
        return _read_shards(folder / INDEX_FILE)
    refuse_pickles(str(folder), (path.name for path in folder.iterdir()))
    raise CheckpointError(f"{folder} holds no {SINGLE_FILE} and no {INDEX_FILE}")


def read_weight_map(index_path: Path) -> dict[str, str]:
    """Tensor name -> shard, as an index tells. Raises CheckpointError unless shards are plain file names."""
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path} has no weight_map; download the checkpoint again")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{index_path} names the shard {shard!r:.200}, which is no *.safetensors file name beside it"
            )
    return weight_map


def refuse_pickles(where: str, names: Iterable[str]) -> None:
    """Raise CheckpointError, saying how to convert, if a pickle is among the file names."""
    weights = (name for name in names if name.endswith(_PICKLES) and name != "training_args.bin")
    pickle = min(weights, default=None)
    if pickle is not None:
        raise CheckpointError(
            f"{where} holds its weights as a pickle ({pickle!r:.100}), which can run code and is never "
            "opened; convert it with safetensors.torch.save_file(torch.load(PICKLE, weights_only=True), "
            "'model.safetensors')"
        )


def _read_shards(index_path: Path) -> dict[str, FileTensor]:
    weight_map = read_weight_map(index_path)
    tensors: dict[str, FileTensor] = {}
    for shard in sorted(set(weight_map.values())):
        held = read_safetensors_header(index_path.parent / shard)
        twice = sorted(set(held) & set(tensors))
        if twice:
            raise CheckpointError(f"{index_path.parent / shard} holds {twice[0]!r} again; one tensor, one shard")
        tensors.update(held)
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise CheckpointError(f"{index_path} lists {missing[0]!r}, which no shard holds; download it again")
    return tensors


def read_safetensors_header(path: Path) -> dict[str, FileTensor]:
    """The tensors of one safetensors file. Raises CheckpointError where header and file disagree.

    As strict as the safetensors library: each name once, and tensors fill the file without gap or overlap.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; download the checkpoint again")
    try:
        with path.open("rb") as file:
            raw, size = _header_bytes(path, file)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    try:
        header = json.loads(raw, object_pairs_hook=_each_name_once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged safetensors header ({error}); download it again") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a damaged safetensors header (no object); download it again")
    start = 8 + len(raw)
    entries = [_header_entry(path, name, entry) for name, entry in header.items() if name != "__metadata__"]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    position = 0
    for entry in entries:
        if entry.begin != position:
            raise CheckpointError(
                f"{path}: tensor {entry.name!r} begins at byte {entry.begin}, where {position} is next free; "
                "download it again"
            )
        position = entry.end
    if start + position != size:
        raise CheckpointError(f"{path} is {size} bytes, its header tells {start + position}; download it again")
    return {e.name: FileTensor(path, start + e.begin, e.dtype, e.shape, e.name) for e in entries}


def _header_bytes(path: Path, file: BinaryIO) -> tuple[bytes, int]:
    """The JSON header and the file's size."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    if len(prefix) < 8:
        raise CheckpointError(f"{path} is {size} bytes, too short for a safetensors file; download it again")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(_MAX_HEADER, size - 8):
        raise CheckpointError(f"{path} announces a header of {length} bytes, has {size - 8}; download it again")
    return file.read(length), size


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, value in pairs:
        if name in entries:
            raise ValueError(f"{name!r:.300} stands there twice")
        entries[name] = value
    return entries


@dataclass(frozen=True)
class _HeaderEntry:
    """One tensor of a header; begin and end are bytes after the header."""

    name: str
    dtype: ir.DataType
    shape: list[int]
    begin: int
    end: int


def _header_entry(path: Path, name: str, entry: Any) -> _HeaderEntry:
    where = f"{path}: tensor {name!r:.300}"
    try:
        stored, shape, (begin, end) = entry["dtype"], _sizes(entry["shape"]), _sizes(entry["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{where} has an unreadable header entry: {entry!r:.200}") from None
    if not isinstance(stored, str) or stored not in _DTYPES:
        raise CheckpointError(f"{where} is stored as {stored!r:.40}; known are {', '.join(_DTYPES)}")
    dtype = _DTYPES[stored]
    if end - begin != math.prod(shape) * dtype.numpy().itemsize:
        raise CheckpointError(
            f"{where} of shape {shape!s:.200} does not fit its bytes {begin}..{end}; download it again"
        )
    return _HeaderEntry(name, dtype, shape, begin, end)


def _sizes(value: Any) -> list[int]:
    """A JSON value as a list of sizes. Raises ValueError for anything else."""
    if not isinstance(value, list) or any(type(item) is not int or not 0 <= item < 2**63 for item in value):
        raise ValueError("not a list of non-negative 64-bit integers")
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object. Raises CheckpointError in one line."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds a {type(document).__name__}, not an object")
    return document
