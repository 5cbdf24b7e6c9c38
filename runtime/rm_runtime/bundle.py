"""Opening a bundle: nothing in it is used before its manifest, its paths and its sizes have been checked."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rm_runtime.errors import BundleError
from rm_runtime.manifest import FileRecord, Manifest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MANIFEST_NAME = "bundle.json"
TOKENIZER_NAME = "tokenizer.json"
_MAX_MANIFEST = 16 * 1024 * 1024
_READ_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Bundle:
    """An opened bundle folder whose manifest, paths and sizes are as they should be."""

    path: Path
    manifest: Manifest

    @property
    def weight_bytes(self) -> int:
        """Size of the weights beside the graphs, which share them."""
        return sum(record.size for name, record in self.manifest.files.items() if name.endswith(".data"))

    def graph_path(self, role: str = "plain") -> Path:
        """The ONNX file of that role: "plain", or "prefix" where the bundle has one."""
        name = self.manifest.graphs.get(role)
        if name is None:
            raise BundleError(f"{self.path} has no {role!r} graph (it has {', '.join(self.manifest.graphs)})")
        return self.path / name

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(self.path / TOKENIZER_NAME))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{self.path / TOKENIZER_NAME} cannot be read: {error}") from None

    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer, loaded once."""
        return self._tokenizer


def open_bundle(path: str | os.PathLike[str], verify: bool = False, only: Collection[str] | None = None) -> Bundle:
    """Open a bundle folder and check it.

    verify: also compare every file's sha256, which reads the whole bundle. only: the files that will be used, None =
    all; others may be missing and are not checked.
    Raises BundleError, in one line that says what is wrong and how to mend it, for: no bundle, a damaged or unknown
    manifest, a missing file, a link, a path outside the bundle, a wrong size, a wrong hash.
    """
    folder = Path(path)
    manifest_path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder; pass the folder that rm-export wrote")
    if not manifest_path.exists() and not manifest_path.is_symlink():
        raise BundleError(f"{folder} holds no {MANIFEST_NAME}, so it is not a bundle; export one with rm-export")
    if regular_size(manifest_path, folder) > _MAX_MANIFEST:
        raise BundleError(
            f"{manifest_path} is larger than {_MAX_MANIFEST} bytes, no manifest is; export the bundle again"
        )
    manifest = Manifest.from_json(manifest_path.read_bytes(), str(manifest_path))
    for name in (*manifest.graphs.values(), TOKENIZER_NAME):
        if name not in manifest.files:
            raise BundleError(f"{manifest_path} does not list its own {name}; export the bundle again")
    for name, record in manifest.files.items():
        if only is None or name in only:
            _check_file(folder, name, record, verify)
    return Bundle(folder, manifest)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def regular_size(path: Path, folder: Path) -> int:
    """Size of a regular file below `folder`; BundleError if it is missing, or it or a folder above it is a link."""
    for step in (path, *path.parents):
        if step == folder:
            break
        if step.is_symlink():
            raise BundleError(f"{step} is a symbolic link; a bundle holds plain files only, copy it with cp -L")
    try:
        status = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        raise BundleError(f"{path} is missing; copy the whole bundle again, or export it again") from None
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path} is not a plain file; a bundle holds plain files only")
    return status.st_size


def _check_file(folder: Path, name: str, record: FileRecord, verify: bool) -> None:
    path = folder / name
    size = regular_size(path, folder)
    if size != record.size:
        raise BundleError(
            f"{path} has {size} bytes, its manifest says {record.size}; copy the bundle again, or export it again"
        )
    if verify and sha256_of(path) != record.sha256:
        raise BundleError(f"{path} does not match its sha256; copy the bundle again, or export it again")
