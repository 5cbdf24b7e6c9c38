"""libFuzzer, briefly: whatever stands in a manifest, a JSON line or a tokenizer, it is read or refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import checkpoints
import cpp_builds
from prompt_cases import FOLDER
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint

RUNS = 4000
LINES = (
    {
        "messages": [{"role": "user", "content": "Hi \u00e9\ud83d\ude00"}, {"role": "assistant", "content": ""}],
        "id": 1.5e-7,
    },
    {"messages": [{"role": "user", "content": "q"}], "responses": ["a", "b"], "id": "x"},
    {"input": "q", "candidates": ["a", "b"], "instruction": None},
    {"text": "<s>rendered"},
)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus to start from: real manifests, lines, and tokenizers of a few pieces."""
    folder = tmp_path_factory.mktemp("seeds")
    corpus = folder / "corpus"
    corpus.mkdir()
    for name, make in {"armorm": checkpoints.armorm, "pair": checkpoints.pair_pm, "pairrm": checkpoints.pairrm}.items():
        bundle = export_checkpoint(open_checkpoint(make(folder / f"{name}-checkpoint")), folder / name)
        (corpus / name).write_bytes(b"m" + (bundle / "bundle.json").read_bytes())
    for number, line in enumerate(LINES):
        (corpus / f"line{number}").write_text("l" + json.dumps(line))
    for family in ("llama3", "mistral", "deberta"):
        (corpus / family).write_text("t" + json.dumps(small_tokenizer(family)))
    return corpus


def small_tokenizer(family: str) -> dict[str, object]:
    document = json.loads((FOLDER / family / "tokenizer.json").read_text())
    model = document["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"], model["merges"] = dict(list(model["vocab"].items())[:40]), []
        model["unk_token"] = None
    else:
        model["vocab"] = model["vocab"][:40]
        document["normalizer"]["normalizers"].pop(1)
    document["added_tokens"] = []
    return dict(document)


def test_a_short_run_of_libfuzzer_finds_nothing(seeds: Path, tmp_path: Path) -> None:
    root = cpp_builds.onnxruntime_root()
    if shutil.which("clang++") is None:
        cpp_builds.missing("clang++, for libFuzzer")
    program = cpp_builds.BUILDS / "fuzz_inputs"
    sanitizers = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    library = [f"{root}/lib/libonnxruntime.so.1", f"-Wl,-rpath,{root}/lib"]
    source = str(Path(__file__).parent / "fuzz_inputs.cpp")
    includes = [f"-I{cpp_builds.SOURCE}/include", "-isystem", f"{root}/include"]
    compiler = ["clang++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", *sanitizers]
    libraries = [*library, "-lpcre2-8", "-lutf8proc", "-lcrypto"]
    cpp_builds.run([*compiler, *includes, source, *libraries, "-o", str(program)])
    done = subprocess.run(
        [program, f"-runs={RUNS}", "-seed=1", "-max_len=20000", "-timeout=20", f"-artifact_prefix={tmp_path}/", seeds],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **cpp_builds.SANITIZERS},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {RUNS} runs" in done.stderr
