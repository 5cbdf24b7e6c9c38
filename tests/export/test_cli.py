"""rm-export as a user types it: what it writes, what it says, how it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import checkpoints
from rm_export.cli import main
from rm_runtime import load
from rm_runtime.bundle import open_bundle
from rm_runtime.manifest import manifest_schema


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.armorm(tmp_path_factory.mktemp("checkpoint") / "tiny-armorm")


def failed(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str]:
    """Exit status and the one line on stderr."""
    status = main([str(argument) for argument in argv])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"rm-export: error: [^\n]+\n", captured.err), captured.err
    return status, captured.err


def test_a_family_command_writes_a_bundle_that_scores(checkpoint: Path, tmp_path: Path) -> None:
    assert main(["armorm", "--checkpoint", str(checkpoint), "-o", str(tmp_path / "bundle"), "--fp16"]) == 0
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert load(tmp_path / "bundle", verify=True).score([chat])[0].gating
    assert open_bundle(tmp_path / "bundle").manifest.precision == "fp16"


def test_auto_recognises_the_family(checkpoint: Path, tmp_path: Path) -> None:
    assert main(["auto", "--checkpoint", str(checkpoint), "-o", str(tmp_path / "bundle")]) == 0
    assert open_bundle(tmp_path / "bundle").manifest.family == "armorm"


def test_the_default_output_is_named_after_checkpoint_and_precision(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["auto", "--checkpoint", str(checkpoint)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-armorm-fp32"]


def test_inspect_tells_at_one_glance_what_a_bundle_is(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["armorm", "--checkpoint", str(checkpoint), "-o", str(tmp_path / "bundle"), "--fp16"])
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "bundle"), "--verify"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for fact in (
        "armorm, fp16 for cpu",
        "FIRST-PAD",
        "1 BOS",
        "rewards",
        "sha256 of every file checked",
        "not measured",
    ):
        assert fact in shown


def test_the_manifest_is_printed_as_json_and_keeps_its_schema(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["armorm", "--checkpoint", str(checkpoint), "-o", str(tmp_path / "bundle")])
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "bundle"), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    Draft202012Validator.check_schema(manifest_schema())
    Draft202012Validator(manifest_schema()).validate(manifest)


def test_bfloat16_for_the_cpu_is_refused_with_a_sentence(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = failed(capsys, "armorm", "--checkpoint", checkpoint, "-o", tmp_path / "bundle", "--bf16")
    assert status == 1
    assert re.search(r"target cpu runs [^;]*, not bf16; bf16 runs on --target cuda", line)


def test_a_bfloat16_bundle_for_cuda_is_refused_by_the_cpu_with_a_sentence(checkpoint: Path, tmp_path: Path) -> None:
    argv = ["armorm", "--checkpoint", str(checkpoint), "-o", str(tmp_path / "bundle"), "--bf16", "--target", "cuda"]
    assert main(argv) == 0
    with pytest.raises(Exception, match="onnxruntime has no bf16 attention on the CPU; export with") as caught:
        load(tmp_path / "bundle", device="cpu")
    assert type(caught.value).__name__ == "EngineError"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["unknown-family"],
        ["armorm", "--precision", "int3"],
        ["armorm", "--fp16", "--bf16"],
        ["scalar"],
        ["auto"],
        ["inspect"],
        ["armorm", "--max-length", "0"],
        ["demo"],
    ],
    ids=" ".join,
)
def test_misuse_is_one_line_and_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert failed(capsys, *argv)[0] == 2


def test_a_missing_checkpoint_is_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, line = failed(capsys, "armorm", "--checkpoint", tmp_path, "-o", tmp_path / "bundle")
    assert status == 1
    assert "holds no config.json" in line


def test_the_wrong_family_is_one_line_that_names_the_missing_tensor(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = failed(capsys, "scalar", "--checkpoint", checkpoint, "-o", tmp_path / "bundle")
    assert status == 1
    assert "score.weight" in line


def test_an_unknown_extra_tensor_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    folder = checkpoints.dpa_rm(tmp_path / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "score.extra_scale": np.ones(10, np.float32)}, folder / "model.safetensors")
    status, line = failed(capsys, "dpa-rm", "--checkpoint", folder, "-o", tmp_path / "bundle")
    assert status == 1
    assert "score.extra_scale" in line


def test_a_traceback_appears_only_with_debug(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from rm_export.cli import main; sys.exit(main())"]
    arguments = ["armorm", "--checkpoint", str(tmp_path)]
    plain = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    debug = subprocess.run([*command, "--debug", *arguments], capture_output=True, text=True, check=False)
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr
    assert plain.returncode == debug.returncode == 1
