"""What flows between the stages of a calibration: in memory up to a budget, beyond it in files; kept for a restart.

A folder beside the bundle holds, after a stage, one safetensors file a batch, what was found out so far, and, written
last, how far that is. A calibration that was killed goes on from there if it is the same one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rm_export.bundle import replace_file
from rm_export.stage_runner import State

MEMORY_BYTES = 1 << 30
"""States beyond this go to the disk."""

SECONDS_BETWEEN_SAVES = 30.0
"""A stage that took less since the last save is not worth one."""

_PROGRESS = "progress.json"
_FINDINGS = "findings.yaml"


class States(MutableMapping[str, State]):
    """A mapping of batch names to states. Those that do not fit into `memory_bytes` lie in files of `folder`."""

    def __init__(self, folder: Path, memory_bytes: int = MEMORY_BYTES) -> None:
        self.folder = folder
        self._memory_bytes = memory_bytes
        self._held: dict[str, State] = {}
        self._files: dict[str, Path] = {}
        self._bytes = 0

    def __getitem__(self, name: str) -> State:
        return load_file(self._files[name]) if name in self._files else self._held[name]

    def __setitem__(self, name: str, state: State) -> None:
        self._bytes -= _size(self._held.pop(name, {}))
        self._files.pop(name, None)
        if self._bytes + _size(state) <= self._memory_bytes:
            self._held[name] = state
            self._bytes += _size(state)
        else:
            self._files[name] = self.write(name, state)

    def __delitem__(self, name: str) -> None:
        if self._files.pop(name, None) is None:
            self._bytes -= _size(self._held.pop(name))

    def __iter__(self) -> Iterator[str]:
        yield from (*self._held, *self._files)

    def __len__(self) -> int:
        return len(self._held) + len(self._files)

    def move_to(self, folder: Path) -> None:
        """Write into another folder from now on."""
        self.folder = folder

    def save(self) -> dict[str, str]:
        """Every state in a file of the present folder, those in memory too: name -> file name."""
        return {name: (self._files.get(name) or self.write(name, self._held[name])).name for name in self}

    def restore(self, files: dict[str, str]) -> None:
        """Take the files of the present folder, each read whole. Raises SafetensorError or OSError for a bad one."""
        for name, file in files.items():
            self[name] = load_file(self.folder / file)

    def write(self, name: str, state: State) -> Path:
        """One state as a file of the present folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.safetensors"
        save_file(state, path)
        return path


class Resume:
    """Where a calibration keeps what it needs to go on, and takes it up again.

    folder: its own, removed by `clear`. key: digest of everything the result depends on.
    """

    def __init__(self, folder: Path, key: str, seconds_between_saves: float = SECONDS_BETWEEN_SAVES) -> None:
        self.folder = folder
        self._key = key
        self._seconds = seconds_between_saves
        self._saved = time.monotonic()
        self._kept: Path | None = None

    def stage_folder(self, stage: int) -> Path:
        """Where states of that stage are written."""
        return self.folder / f"stage-{stage:03d}"

    def take_up(self, states: States) -> tuple[int, str] | str | None:
        """Restore the states of the calibration with this key: (stages done, findings).

        None if there is none; what is wrong, in a line, if its files are damaged or are another calibration's: it is
        then cleared away, and the calibration starts over.
        """
        path = self.folder / _PROGRESS
        if not path.is_file():
            self.clear()
            return None
        try:
            progress = json.loads(path.read_bytes())
            if progress["key"] != self._key:
                raise ValueError("it belongs to another checkpoint, other conversations or options")
            done = int(progress["stage"])
            states.move_to(self.stage_folder(done))
            states.restore(progress["files"])
            findings = (self.stage_folder(done) / _FINDINGS).read_text("utf-8")
            if _digest(findings) != progress["findings"]:
                raise ValueError(f"{_FINDINGS} is not what was written")
            self._kept = self.stage_folder(done)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            self.clear()
            states.clear()
            return f"{self.folder}: the interrupted calibration cannot be continued ({error}); starting over"
        return done, findings

    def save(self, stage: int, states: States, findings: Callable[[], str]) -> None:
        """After a stage: make it the one to go on from, if enough time passed since the last save."""
        now = self.stage_folder(stage)
        if time.monotonic() - self._saved >= self._seconds:
            files = states.save()
            found = findings()
            (now / _FINDINGS).write_text(found, "utf-8")
            progress = {"key": self._key, "stage": stage, "files": files, "findings": _digest(found)}
            replace_file(self.folder / _PROGRESS, json.dumps(progress).encode())
            self._kept, self._saved = now, time.monotonic()
        for older in self.folder.glob("stage-*"):
            if older not in (now, self._kept):
                shutil.rmtree(older)

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _size(state: State) -> int:
    return sum(array.nbytes for array in state.values())
