"""runtime/cpp as others use it: installed, found by CMake, and the guide followed word for word."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

import checkpoints
import cpp_builds
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_runtime import load

GUIDE = (cpp_builds.ROOT / "docs" / "cpp.md").read_text()
CHAT = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
CONSUMER = """cmake_minimum_required(VERSION 3.18)
project(consumer LANGUAGES CXX)
find_package(rm_runtime REQUIRED)
add_executable(program main.cpp other.cpp)
target_link_libraries(program PRIVATE rm_runtime::rm_runtime)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    return export_checkpoint(open_checkpoint(checkpoints.armorm(folder / "checkpoint")), folder / "bundle")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def test_the_guides_five_commands_lead_to_a_score(bundle: Path, tmp_path: Path) -> None:
    install, fetch, configure, build, score = blocks("console")[0].strip().splitlines()
    root = cpp_builds.onnxruntime_root()  # skips where nothing can be built
    packages = install.removeprefix("apt-get install -y ").split()
    status = cpp_builds.run(["dpkg-query", "--show", "--showformat=${Package} ${Status}\\n", *packages])
    assert status.count(" install ok installed") == len(packages)
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "runtime").symlink_to(cpp_builds.ROOT / "runtime")
    shutil.copytree(bundle, clone / "bundle")
    (clone / "chats.jsonl").write_text(json.dumps({"messages": CHAT}))
    assert fetch.split() == ["runtime/cpp/tools/get_onnxruntime.sh", "build/onnxruntime"]
    shutil.copytree(root, clone / "build" / "onnxruntime", symlinks=True)  # what this very script made
    for command in (configure, build):
        cpp_builds.run(["bash", "-c", command], cwd=clone)
    answer = json.loads(cpp_builds.run(["bash", "-c", score], cwd=clone))
    expected = load(bundle, engine="onnxruntime").score([CHAT])[0].score
    assert answer["score"] == pytest.approx(expected, abs=1e-6)


def test_the_guides_program_finds_the_installed_package_and_scores(bundle: Path, tmp_path: Path) -> None:
    root = cpp_builds.onnxruntime_root()
    prefix = tmp_path / "prefix"
    cpp_builds.run(["cmake", "--install", str(cpp_builds.sanitized()), "--prefix", str(prefix)])
    source = tmp_path / "consumer"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(CONSUMER)
    (source / "main.cpp").write_text(blocks("cpp")[0])
    (source / "other.cpp").write_text('#include "rm_runtime.hpp"\n')  # a second unit: nothing is defined twice
    options = [f"-DCMAKE_PREFIX_PATH={prefix}", f"-DONNXRUNTIME_ROOT={root}", "-DCMAKE_CXX_FLAGS=-O0"]
    folder = tmp_path / "build"
    cpp_builds.run(["cmake", "-S", str(source), "-B", str(folder), "-G", "Ninja", *options])
    cpp_builds.run(["cmake", "--build", str(folder)])
    printed = cpp_builds.run([str(folder / "program"), str(bundle)]).splitlines()
    score = load(bundle, engine="onnxruntime").score([CHAT])[0]
    assert float(printed[0]) == pytest.approx(score.score, rel=1e-4)  # six digits are printed
    assert [line.split()[0] for line in printed[1:-1]] == list(score.rewards)
    assert printed[-1] in ("first answer: rank 1", "first answer: rank 2")


def test_a_tokenizer_of_the_callers_is_used_from_several_threads(bundle: Path) -> None:
    *scores, counts = cpp_builds.run(
        [str(cpp_builds.sanitized() / "plugged_in"), str(bundle)], env={**os.environ, **cpp_builds.SANITIZERS}
    ).splitlines()
    chat = [
        {"role": "user", "content": "What does <|eot_id|> mean?"},
        {"role": "assistant", "content": "The end of a turn."},
    ]
    expected = load(bundle, engine="onnxruntime", special_text="text").score([chat])[0].score
    assert [float(score) for score in scores] == pytest.approx([expected] * 4, abs=1e-6)
    assert counts == "2 1 4"  # made once, and once more with renamed tokens; a text of each thread


def configured(tmp_path: Path, root: object) -> subprocess.CompletedProcess[str]:
    command = ["cmake", "-S", cpp_builds.SOURCE, "-B", tmp_path / "build", f"-DONNXRUNTIME_ROOT={root}"]
    environment = {name: value for name, value in os.environ.items() if name != "ONNXRUNTIME_ROOT"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_releases_archive_is_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "onnxruntime-linux-x64.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(cpp_builds.onnxruntime_root(), "onnxruntime-linux-x64-1.0")
    done = configured(tmp_path, archive)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime-linux-x64-1.0/lib/libonnxruntime.so" in done.stdout


@pytest.mark.parametrize("root", ["/nowhere", "empty"])
def test_a_root_without_onnxruntime_is_said_so(root: str, tmp_path: Path) -> None:
    cpp_builds.onnxruntime_root()
    (tmp_path / "empty").mkdir()
    done = configured(tmp_path, tmp_path / root if root == "empty" else root)
    assert done.returncode != 0
    assert "ONNXRUNTIME_ROOT" in done.stderr
