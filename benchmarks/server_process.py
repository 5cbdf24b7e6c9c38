"""`rm-runtime serve`, or a peer's server, in a process of its own, and what the system tells of a process."""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

READY_SECONDS = 300.0


@dataclass(frozen=True)
class ServerProcess:
    """A server that is ready. log: what it writes on stderr."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def usage(self) -> Usage:
        """What it and its workers take now."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return functools.reduce(operator.add, map(usage_of, [self.process.pid, *map(int, children)]))


@dataclass(frozen=True)
class Usage:
    """Of a process: seconds of CPU so far, bytes resident now and at most, threads, open descriptors."""

    cpu_seconds: float
    resident_bytes: int
    peak_bytes: int
    threads: int
    descriptors: int

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def usage_of(pid: int) -> Usage:
    """Source: Linux, proc_pid_stat(5) and proc_pid_status(5)."""
    folder = Path(f"/proc/{pid}")
    user, system = folder.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
    lines = (line.partition(":") for line in folder.joinpath("status").read_text().splitlines())
    status = {name: value.split() for name, _, value in lines}
    return Usage(
        (int(user) + int(system)) / os.sysconf("SC_CLK_TCK"),
        1024 * int(status["VmRSS"][0]),
        1024 * int(status["VmHWM"][0]),
        int(status["Threads"][0]),
        len(list(folder.joinpath("fd").iterdir())),
    )


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def started(
    command: Sequence[str], port: int, cores: Sequence[int] | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Run a command until its /health says 200, and end it afterwards. cores: the only ones that it may use.

    Raises RuntimeError with the end of its log if it ends before, or is not ready in READY_SECONDS.
    """
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen([*pinned, *command], stderr=log, stdout=log, env={**os.environ, **(variables or {})})
        server = ServerProcess(process, port, Path(log.name))
        try:
            end = time.monotonic() + READY_SECONDS
            while not _healthy(port):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{command} is not ready:\n{server.log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def rm_runtime_serve(bundle: Path, port: int, *options: str) -> list[str]:
    """The command line, with this interpreter."""
    main = "import sys; from rm_runtime.cli import main; sys.exit(main())"
    return [sys.executable, "-c", main, "serve", f"rm={bundle}", "--port", str(port), "--no-grpc", *options]


def _healthy(port: int) -> bool:
    """Whether /health is 200, or there is no such route on a server that answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        return error.code == 404
    except OSError:
        return False
