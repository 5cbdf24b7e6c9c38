"""`optimum-cli export reward` is rm-export inside Optimum, whichever way the package is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import checkpoints
from rm_runtime.bundle import open_bundle

pytest.importorskip("optimum.commands.optimum_cli")

ROOT = Path(__file__).parent.parent.parent
SOURCES = [str(ROOT / folder) for folder in ("export", "calibration", "runtime")]


def optimum_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The real optimum-cli in a process of its own, with this checkout first on its path."""
    path = os.pathsep.join([*SOURCES, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "optimum.commands.optimum_cli", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_is_the_help_of_rm_export() -> None:
    shown = optimum_cli("export", "reward", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "Usage: rm-export" in shown.stdout
    assert "armorm" in shown.stdout


def test_export_lists_the_reward_command() -> None:
    shown = optimum_cli("export", "--help")
    assert "reward" in shown.stdout
    assert "rm-export" in shown.stdout


def test_a_checkpoint_becomes_a_bundle_and_options_pass_through(tmp_path: Path) -> None:
    checkpoint = checkpoints.scalar(tmp_path / "checkpoint")
    output = tmp_path / "bundle"
    arguments = ["scalar", "--checkpoint", str(checkpoint), "--fp16", "-o", str(output)]
    exported = optimum_cli("export", "reward", *arguments)
    assert exported.returncode == 0, exported.stderr
    assert open_bundle(output, verify=True).manifest.precision == "fp16"


def test_misuse_is_one_line_and_status_two() -> None:
    refused = optimum_cli("export", "reward", "nonsense", "--fp16")
    assert refused.returncode == 2
    assert "No such command 'nonsense'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_optimum_stays_a_namespace_that_we_do_not_own() -> None:
    assert not list((ROOT / "export" / "optimum").rglob("__init__.py"))
