"""A bundle appears whole or not at all, and an older one under its name is never damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

import checkpoints
from rm_export.bundle import INLINE_BYTES, staged_folder
from rm_export.checkpoint import open_checkpoint
from rm_export.errors import CheckpointError, ExportError
from rm_export.exporter import export_checkpoint
from rm_runtime.bundle import MANIFEST_NAME, open_bundle
from rm_runtime.errors import BundleError

EXPORT = """
import sys, time
from pathlib import Path
from rm_export import bundle
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint

class Slow(bundle.Silent):
    def advance(self, done):
        print("advance", flush=True)
        time.sleep(0.01)

export_checkpoint(open_checkpoint(Path(sys.argv[1])), Path(sys.argv[2]), force=True, progress=Slow())
print("done", flush=True)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.scalar(tmp_path_factory.mktemp("checkpoint"))


def kill_during_export(checkpoint: Path, output: Path, advances: int) -> None:
    """Start an export in a process of its own and kill -9 it after so many writes."""
    with subprocess.Popen(
        [sys.executable, "-c", EXPORT, str(checkpoint), str(output)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(advances):
            assert process.stdout.readline() == "advance\n"
        os.kill(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("advances", [0, 1, 10, 25])
def test_a_killed_export_leaves_no_bundle(checkpoint: Path, tmp_path: Path, advances: int) -> None:
    output = tmp_path / "bundle"
    kill_during_export(checkpoint, output, advances)
    with pytest.raises(BundleError):
        open_bundle(output)


@pytest.mark.parametrize("advances", [0, 5, 25])
def test_a_killed_export_leaves_the_older_bundle_untouched(checkpoint: Path, tmp_path: Path, advances: int) -> None:
    output = export_checkpoint(open_checkpoint(checkpoint), tmp_path / "bundle", precision="fp16")
    kill_during_export(checkpoint, output, advances)
    assert open_bundle(output, verify=True).manifest.precision == "fp16"


def test_a_kill_at_any_moment_leaves_the_old_bundle_or_the_new_one(checkpoint: Path, tmp_path: Path) -> None:
    output = export_checkpoint(open_checkpoint(checkpoint), tmp_path / "bundle", precision="fp16")
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", EXPORT, str(checkpoint), str(output)], check=True, capture_output=True)
    whole = time.monotonic() - started
    for share in (0.5, 0.8, 0.9, 0.95, 0.99):
        process = subprocess.Popen(
            [sys.executable, "-c", EXPORT, str(checkpoint), str(output)], stdout=subprocess.DEVNULL
        )
        time.sleep(whole * share)
        process.kill()
        process.wait()
        open_bundle(output, verify=True)


def test_the_next_export_clears_away_what_a_killed_one_left(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    kill_during_export(checkpoint, output, 10)
    assert list(tmp_path.glob(".bundle.partial-*"))
    export_checkpoint(open_checkpoint(checkpoint), output)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_export_beside_a_running_one_leaves_its_stage_alone(tmp_path: Path) -> None:
    other = tmp_path / f".bundle.partial-{os.getppid()}"
    other.mkdir()
    with staged_folder(tmp_path / "bundle", force=False):
        pass
    assert other.is_dir()


def test_an_existing_bundle_is_replaced_only_by_force(checkpoint: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint)
    output = export_checkpoint(opened, tmp_path / "bundle")
    with pytest.raises(ExportError, match="--force"):
        export_checkpoint(opened, output, precision="fp16")
    export_checkpoint(opened, output, precision="fp16", force=True)
    assert open_bundle(output, verify=True).manifest.precision == "fp16"


def test_a_folder_that_is_not_a_bundle_is_never_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="is not a bundle"):
        export_checkpoint(open_checkpoint(checkpoint), tmp_path, force=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_failed_export_leaves_nothing_behind(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"] = np.full_like(tensors["score.weight"], np.nan)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"score\.weight.*NaN"):
        export_checkpoint(open_checkpoint(folder), tmp_path / "out" / "bundle")
    assert list((tmp_path / "out").iterdir()) == []


def test_two_exports_of_one_checkpoint_are_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint)
    one, two = (export_checkpoint(opened, tmp_path / name, precision="fp16") for name in ("one", "two"))
    assert (one / MANIFEST_NAME).read_text() == (two / MANIFEST_NAME).read_text()


def test_weights_lie_aligned_in_one_file_and_small_constants_inline(checkpoint: Path, tmp_path: Path) -> None:
    output = export_checkpoint(open_checkpoint(checkpoint), tmp_path / "bundle")
    model = ir.load(output / "model.onnx")
    external = [
        v.const_value for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)
    ]
    inline = [
        v.const_value for v in model.graph.initializers.values() if not isinstance(v.const_value, ir.ExternalTensor)
    ]
    assert external
    assert {tensor.location for tensor in external} == {"model.onnx.data"}
    assert all((tensor.offset or 0) % 64 == 0 for tensor in external)
    assert all(tensor is not None and tensor.nbytes < INLINE_BYTES for tensor in inline)
