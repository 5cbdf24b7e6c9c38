"""What a benchmark compares, and talking to the process each of them runs in."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rm_runtime.engines import ENGINES
from rm_runtime.errors import EngineError, RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

_ENGINE_WORKER = "rm_runtime.bench.worker"
_REFERENCE_WORKER = "rm_export.bench_worker"
"""Run by its name in a process of its own, so that the runtime imports nothing of rm_export, and torch nowhere."""

REFERENCES = {"hf": ("hf-float32", "hf-bfloat16")}
"""Values of --vs, and the contenders they stand for."""

_LINE = 300


@dataclass(frozen=True)
class ContenderSpec:
    """One to be measured. name: an engine's or a reference's; worker: the module that runs it."""

    name: str
    worker: str

    @property
    def is_reference(self) -> bool:
        return self.worker == _REFERENCE_WORKER


def contender_specs(engines: Sequence[str], versus: str | None = None) -> list[ContenderSpec]:
    """engines: names, "auto", or "all" for every one that is installed. versus: "hf" adds the references.

    Raises EngineError if an engine or the reference's packages are not there.
    """
    names = list(dict.fromkeys(engines))
    if "all" in names:
        names = [name for name, record in ENGINES.items() if record.installed()] or ["auto"]
    specs = [ContenderSpec(name, _ENGINE_WORKER) for name in names]
    if versus is not None:
        if versus not in REFERENCES:
            raise RequestError(f"nothing to compare with is called {versus!r} (known: {', '.join(REFERENCES)})")
        missing = [package for package in ("rm_export", "torch", "transformers") if find_spec(package) is None]
        if missing:
            raise EngineError(f"the reference needs {missing[0]}; pip install 'rm-export[reference]'")
        specs += [ContenderSpec(name, _REFERENCE_WORKER) for name in REFERENCES[versus]]
    return specs


class Contender:
    """A contender's process, from its start to `close`. `opened` is what the worker told of itself."""

    def __init__(self, spec: ContenderSpec, settings: dict[str, Any]) -> None:
        """Starts it and waits until it is open. Raises EngineError with its reason if it does not open."""
        self.spec = spec
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", spec.worker],  # -P: a torch.py where the user stands is not run
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            encoding="utf-8",
        )
        try:
            self.opened: dict[str, Any] = self._ask({**settings, "contender": spec.name})["opened"]
        except BaseException:
            self.stop()
            raise

    def run(self, rows: Sequence[int]) -> float:
        """Seconds for these rows as one request. Raises EngineError if the process failed or died."""
        return float(self._ask({"run": list(rows)})["seconds"])

    def close(self) -> int | None:
        """Ends the process; returns its peak resident set in bytes, None where the system does not tell."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # no reply then tells that it died
            self._process.stdin.close()
        peak = self._reply()["peak_bytes"]
        self.stop()
        return None if peak is None else int(peak)

    def stop(self) -> None:
        """Ends the process whatever it does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream:
                with contextlib.suppress(BrokenPipeError):  # of what it never read
                    stream.close()

    def _ask(self, document: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # its reply, or that there is none, tells why
            self._process.stdin.write(json.dumps(document) + "\n")
            self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(f"{self.spec.name}: {self._death()}")
        reply: dict[str, Any] = json.loads(line)
        if "failure" in reply:
            raise EngineError(f"{self.spec.name}: {reply['failure']}")
        return reply

    def _death(self) -> str:
        status = self._process.wait()
        if status == -9:
            return "its process was killed; the machine may be short of memory, measure with --one-at-a-time"
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return (lines or [f"its process ended with status {status}"])[-1][:_LINE]
