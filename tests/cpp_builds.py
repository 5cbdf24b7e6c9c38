"""The C++ library, built for the tests in build/cpp, where a second run finds what the first one made."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "runtime" / "cpp"
BUILDS = ROOT / "build" / "cpp"
PROGRAMS = ("cmake", "ninja", "g++", "dpkg")
HEADERS = ("pcre2.h", "utf8proc.h", "nlohmann/json.hpp", "openssl/evp.h")
SANITIZERS = {
    "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=0",
    "LSAN_OPTIONS": f"suppressions={ROOT / 'tests' / 'cpp' / 'leaks.txt'}:print_suppressions=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def missing(what: str) -> None:
    """Skip the test for want of `what`; in CI, where all must run, fail it."""
    reason = f"the C++ library cannot be built here: {what} (apt-get install what .ci/run installs)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@cache
def sanitized() -> Path:
    """The folder of rm_score and token_ids, with AddressSanitizer and UndefinedBehaviorSanitizer."""
    options = [
        "-DRM_RUNTIME_SANITIZE=ON",
        "-DRM_RUNTIME_TESTS=ON",
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CXX_FLAGS=-O0 -g1",
    ]
    return built("sanitized", SOURCE, [f"-DONNXRUNTIME_ROOT={onnxruntime_root()}", *options])


def built(name: str, source: Path, options: Sequence[str]) -> Path:
    """The folder in which that CMake project was built, any warning an error."""
    folder = BUILDS / name
    with locked(name):
        run(
            [
                "cmake",
                "-S",
                str(source),
                "-B",
                str(folder),
                "-G",
                "Ninja",
                "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON",
                *options,
            ]
        )
        run(["cmake", "--build", str(folder)])
    return folder


@cache
def onnxruntime_root() -> Path:
    """A folder with ONNX Runtime's headers, and the library of the installed Python package."""
    if "ONNXRUNTIME_ROOT" in os.environ:
        return Path(os.environ["ONNXRUNTIME_ROOT"])
    for program in PROGRAMS:
        if shutil.which(program) is None:
            missing(program)
    for header in HEADERS:
        if not (Path("/usr/include") / header).exists():
            missing(header)
    folder = BUILDS / f"onnxruntime-{metadata.version('onnxruntime')}"
    with locked("onnxruntime"):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            try:
                run([str(SOURCE / "tools" / "get_onnxruntime.sh"), str(unfinished), sys.executable])
            except AssertionError as error:
                missing(f"the headers of ONNX Runtime could not be fetched: {str(error)[-200:]}")
            unfinished.rename(folder)
    return folder


def run(command: Sequence[str], **options: object) -> str:
    """What a command printed; AssertionError with all it said if it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload] - Popen's own options
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return str(done.stdout)


def score(bundle: Path, lines: bytes, *options: str, program: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """rm_score's run over JSON lines, one thread; a sanitizer's finding fails the test."""
    rm_score = program or sanitized() / "rm_score"
    done = subprocess.run(
        [rm_score, bundle, "--threads", "1", *options],
        input=lines,
        capture_output=True,
        check=False,
        env={**os.environ, **SANITIZERS},
        timeout=300,
    )
    assert done.returncode in (0, 1, 2), done.stderr.decode()
    assert b"Sanitizer" not in done.stderr, done.stderr.decode()
    assert b"runtime error" not in done.stderr, done.stderr.decode()
    return done


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process of the test run at a time."""
    BUILDS.mkdir(parents=True, exist_ok=True)
    with (BUILDS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
