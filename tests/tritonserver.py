"""A real tritonserver on loopback, out of the nvidia-pytriton wheel, which carries it with its Python backend only.

The backend's stub process needs numpy 1 in the Python that comes first on PATH, and the wheel asks for it too, so both
lie in an environment of their own, which takes everything else from the environment of the tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from served import PATIENCE, TESTS, Client, eventually

REQUIREMENTS = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_SITE = Path("lib") / f"python{_PYTHON}" / "site-packages"
_SERVER = _SITE / "pytriton" / "tritonserver"


@dataclass(frozen=True)
class TritonServer:
    """A server that is ready. client: its HTTP port; grpc_port; log: lines of its output so far."""

    process: subprocess.Popen[str]
    client: Client
    grpc_port: int
    log: list[str]


@pytest.fixture(scope="session")
def triton_environment(pytestconfig: pytest.Config) -> Path:
    """Installed once, into pytest's cache. Skips where it cannot be had, which in CI is a failure."""
    cache = pytestconfig.cache
    assert cache is not None
    folder = cache.mkdir("tritonserver") / "-".join([_PYTHON, *REQUIREMENTS]).replace("==", "-")
    reason = install(folder)
    for other in folder.parent.iterdir():
        if other.is_dir() and other != folder:  # of requirements that the tests no longer have
            shutil.rmtree(other, ignore_errors=True)
    if reason and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    return folder


def install(folder: Path) -> str | None:
    """Make the environment unless it is there; returns why there is none."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:  # of the processes that run the suite, one installs
        fcntl.flock(lock, fcntl.LOCK_EX)
        return None if folder.exists() else _installed(folder)


def _installed(folder: Path) -> str | None:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    venv.create(partial, symlinks=True)
    site = partial / _SITE
    command = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(site)]
    found = subprocess.run(
        [sys.executable, *command, *REQUIREMENTS], capture_output=True, text=True, timeout=300, check=False
    )
    stub = partial / _SERVER / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub"
    if found.returncode or not stub.exists():
        shutil.rmtree(partial)
        return f"tritonserver cannot be installed: {found.stderr.strip()[-300:] or f'no stub for Python {_PYTHON}'}"
    shutil.copy(stub, partial / _SERVER / "backends" / "python")
    for program in (partial / _SERVER / "bin" / "tritonserver", partial / _SERVER / "backends" / "python" / stub.name):
        program.chmod(0o755)
    checkout = [str(TESTS.parent / name) for name in ("export", "calibration", "runtime")]
    (site / "checkout.pth").write_text("\n".join([*checkout, sysconfig.get_path("purelib")]) + "\n")
    partial.rename(folder)
    return None


def environment_of(installed: Path) -> dict[str, str]:
    """Of a tritonserver: its libraries, and its Python first on PATH."""
    libraries = [str(installed / _SITE / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
    return {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")},
        "PATH": f"{installed / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
    }


def arguments_of(installed: Path) -> list[str]:
    """The command, and what every server of the tests is told."""
    server = installed / _SERVER
    return [str(server / "bin" / "tritonserver"), f"--backend-directory={server / 'backends'}", "--allow-metrics=false"]


def free_ports(count: int) -> list[int]:
    """Below those that the system gives to clients, who might take one before the server listens."""
    free: list[int] = []
    while len(free) < count:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            free.append(port)
    return free


@contextlib.contextmanager
def launched(installed: Path, repository: Path, *arguments: str) -> Iterator[TritonServer]:
    """A server of that repository from its start on; it and its stubs are gone at the end."""
    http_port, grpc_port = free_ports(2)
    memory = f"rm-export-tests-{os.getpid()}-{http_port}"
    process = subprocess.Popen(
        [
            *arguments_of(installed),
            f"--model-repository={repository}",
            "--http-address=127.0.0.1",
            f"--http-port={http_port}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={grpc_port}",
            f"--backend-config=python,shm-region-prefix-name={memory}",
            *arguments,
        ],
        env=environment_of(installed),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    log: list[str] = []
    reading = threading.Thread(target=log.extend, args=[process.stdout], daemon=True)
    reading.start()
    try:
        yield TritonServer(process, Client(http_port), grpc_port, log)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reading.join(PATIENCE)
        process.stdout.close()
        for left in Path("/dev/shm").glob(f"{memory}*"):  # of a stub that failed
            left.unlink()


@contextlib.contextmanager
def tritonserver(installed: Path, repository: Path, *arguments: str) -> Iterator[TritonServer]:
    """A server of that repository that is ready to answer."""
    with launched(installed, repository, *arguments) as server:
        until(server, "ready")
        yield server


def until(server: TritonServer, state: str) -> None:
    """Wait until it is "live" or "ready"; fails with its log if it ends before."""

    def reached() -> bool:
        if server.process.poll() is not None:
            return True
        try:
            return server.client.get(f"/v2/health/{state}").status == 200
        except (OSError, http.client.HTTPException):  # it does not listen yet
            return False

    eventually(reached)
    if server.process.poll() is not None:
        pytest.fail(f"tritonserver is not {state}:\n{''.join(server.log)[-4000:]}")
