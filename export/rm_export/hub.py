"""Where a checkpoint lies: a folder, or a Hugging Face Hub id whose files are fetched into the hub's cache.

Only data is asked for: JSON, tokenizer and template files at the top of the repository, and the safetensors
files that transformers would load. Code, pickles and other variants of the weights are never requested.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rm_export.checkpoint import (
    INDEX_FILE,
    SINGLE_FILE,
    Checkpoint,
    open_checkpoint,
    read_weight_map,
    refuse_pickles,
)
from rm_export.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_METADATA = ("*.json", "*.jinja", "*.model", "*.txt")
_SUBFOLDERS = ("*/*",)
_HUB_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_CLIENT = "rm-export"  # what huggingface_hub puts into its user agent


@dataclass(frozen=True)
class Located:
    """A checkpoint on this disk. id: as the user named it; revision: a hub id's commit, None for a folder."""

    folder: Path
    id: str
    revision: str | None


def open_checkpoint_at(id_or_folder: str, revision: str | None = None) -> Checkpoint:
    """Locate, then open. Raises CheckpointError as `locate` and `rm_export.checkpoint.open_checkpoint` do."""
    located = locate(id_or_folder, revision)
    return open_checkpoint(located.folder, located.id, located.revision)


def locate(
    id_or_folder: str, revision: str | None = None, files: Literal["weights", "metadata"] = "weights"
) -> Located:
    """The folder of that name if there is one, else the snapshot of that hub id, downloaded where incomplete.

    revision: branch, tag or commit of a hub id (default: main). files: "metadata" leaves the weights out.
    huggingface_hub's own settings hold: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE and the like.

    Raises CheckpointError if the name is neither; if the hub is out of reach, lacks the repository or
    revision, or wants a login; if the download breaks off; or if the repository holds no safetensors weights.
    """
    if id_or_folder and os.path.exists(id_or_folder):
        return _local(id_or_folder, revision)
    if not _HUB_ID.fullmatch(id_or_folder):
        raise CheckpointError(f"{id_or_folder!r:.200} is neither a folder nor a hub id like owner/name")
    with _told_in_one_line(id_or_folder, revision, "metadata"):
        folder = _download(id_or_folder, revision, _METADATA, _silent())
    if files == "weights":
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{id_or_folder} holds no config.json, so it is no transformers checkpoint")
        if not _has_weights(folder):
            with _told_in_one_line(id_or_folder, revision, "weights"):
                _download_weights(id_or_folder, folder)
    return Located(folder, id_or_folder, folder.name)


def _local(id_or_folder: str, revision: str | None) -> Located:
    if not os.path.isdir(id_or_folder):
        raise CheckpointError(f"{id_or_folder} is a file; pass the folder that holds config.json and the weights")
    if revision is not None:
        raise CheckpointError(f"{id_or_folder} is a folder, which has no revision {revision!r}; leave it out")
    return Located(Path(id_or_folder), id_or_folder, None)


def _has_weights(folder: Path) -> bool:
    if (folder / SINGLE_FILE).is_file():
        return True
    index = folder / INDEX_FILE
    return index.is_file() and all((folder / shard).is_file() for shard in read_weight_map(index).values())


def _download(hub_id: str, revision: str | None, patterns: Iterable[str], bars: type[Any] | None) -> Path:
    """The snapshot folder, named by its commit, with at least the files at the top that match a pattern."""
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        hub_id,
        revision=revision,
        allow_patterns=list(patterns),
        ignore_patterns=list(_SUBFOLDERS),
        tqdm_class=bars,
        library_name=_CLIENT,
    )
    return Path(folder)


def _download_weights(hub_id: str, folder: Path) -> None:
    """Complete a snapshot folder by the weights that transformers would read."""
    from huggingface_hub import HfApi, RepoFile

    listing = HfApi(library_name=_CLIENT).list_repo_tree(hub_id, revision=folder.name)
    sizes = {entry.path: entry.size for entry in listing if isinstance(entry, RepoFile)}
    missing = [name for name in _weight_files(hub_id, folder, sizes) if not (folder / name).is_file()]
    if sys.stderr.isatty():
        _download(hub_id, folder.name, missing, None)
    else:
        what = f"{len(missing)} weight file{'s' if len(missing) > 1 else ''} of {hub_id}"
        _download(hub_id, folder.name, missing, _plain_lines(what, sum(sizes[name] for name in missing)))


def _weight_files(hub_id: str, folder: Path, names: Iterable[str]) -> list[str]:
    """Which of the repository's files hold the weights, in the order of rm_export.checkpoint.read_tensors."""
    held = set(names)
    if SINGLE_FILE in held:
        return [SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        shards = sorted(set(read_weight_map(folder / INDEX_FILE).values()))
        absent = [shard for shard in shards if shard not in held]
        if absent:
            raise CheckpointError(f"{hub_id}: {INDEX_FILE} names {absent[0]}, which the repository does not hold")
        return shards
    refuse_pickles(hub_id, held)
    raise CheckpointError(f"{hub_id} holds no {SINGLE_FILE} and no {INDEX_FILE}")


@contextmanager
def _told_in_one_line(hub_id: str, revision: str | None, wanted: Literal["weights", "metadata"]) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # of httpx, of hf_xet, of the disk: many classes, and they change by version
        raise CheckpointError(_sentence(error, hub_id, revision, wanted)) from None


def _sentence(error: Exception, hub_id: str, revision: str | None, wanted: str) -> str:
    from huggingface_hub import constants, errors

    cause = error
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        cause = error.__cause__
    hub, cache = constants.ENDPOINT, f"the cache {constants.HF_HUB_CACHE}"
    login = "log in with `hf auth login` or set HF_TOKEN"
    sentences = {
        errors.OfflineModeIsEnabled: f"{hub_id} is no folder and not complete in {cache}, and HF_HUB_OFFLINE "
        "forbids to download it; unset that or pass a folder: --checkpoint DIR",
        errors.GatedRepoError: f"{hub_id} is gated: accept its terms at {hub}/{hub_id}, then {login}",
        errors.RevisionNotFoundError: f"{hub_id} has no revision {revision or 'main'!r}; name a branch, "
        "a tag or a whole commit hash of it",
        errors.RepositoryNotFoundError: f"{hub_id} is neither a folder nor a model on {hub}; check the name, "
        f"or {login} if it is private",
    }
    for kind, sentence in sentences.items():
        if isinstance(cause, kind):
            return sentence
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{hub} refused access to {hub_id} (HTTP {status}); {login} with a token that may read it"
    if isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, ConnectionError):
        return f"cannot write {hub_id} to {cache}: {cause.strerror}; set HF_HOME to a folder with space for it"
    reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
    if wanted == "weights":
        return f"the download of {hub_id} broke off ({reason}); run it again to resume from {cache}"
    return f"cannot reach {hub} for {hub_id} ({reason}); check the connection or pass a folder: --checkpoint DIR"


def _silent() -> type[Any]:
    return _counting_bar(lambda count: None)


def _plain_lines(what: str, total: int) -> type[Any]:
    """A bar for logs: a line on stderr at the start and at each tenth."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from rich.filesize import decimal

    if are_progress_bars_disabled():
        return _silent()
    print(f"downloading {what}, {decimal(total)}", file=sys.stderr, flush=True)
    lock = threading.Lock()
    tenths = 0

    def report(count: int) -> None:
        nonlocal tenths
        with lock:
            if total and count * 10 // total > tenths:
                tenths = count * 10 // total
                print(f"  {tenths * 10}% of {decimal(total)}", file=sys.stderr, flush=True)

    return _counting_bar(report)


def _counting_bar(report: Callable[[int], None]) -> type[Any]:
    """A class for snapshot_download's `tqdm_class` that draws nothing and reports its count of bytes."""
    from huggingface_hub.utils.tqdm import tqdm

    class CountingBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]  # theirs
            self._counts_bytes = kwargs.get("unit") == "B"

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self._counts_bytes:
                report(int(self.n))

    return CountingBar
