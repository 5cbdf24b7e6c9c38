"""Calibration: what it measures, that it can be interrupted, and what it makes of damaged models and files."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import checkpoints
from rm_calibration.conversations import default_conversations
from rm_calibration.errors import CalibrationError
from rm_calibration.recipe import Recipe
from rm_export.build import build_model
from rm_export.bundle import Silent
from rm_export.calibrate import CalibrationOptions, apply_recipe, calibrate
from rm_export.checkpoint import Checkpoint, open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_export.families import family
from rm_export.judges import Judges
from rm_export.options import Options
from rm_export.quantisation import Quantisation
from rm_export.sensitivity import probe_rows
from rm_export.stage_runner import StageRunner, run_stages
from rm_export.states import Resume, States
from rm_runtime.batching import run_rows
from rm_runtime.bundle import open_bundle
from rm_runtime.engines import open_engine

EXAMPLES = default_conversations()[:16]
OPTIONS = CalibrationOptions(threads=1, alphas=(0.0, 0.5), max_flip_rate=1.0)


class Notes(Silent):
    """A Progress that keeps what it is told, and can stop the work at a layer."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.lines: list[str] = []
        self.steps = 0
        self._stop_after = stop_after

    def advance(self, done: int) -> None:
        self.steps += done
        if self._stop_after is not None and self.steps >= self._stop_after:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(checkpoints.grm(tmp_path_factory.mktemp("calibrate") / "checkpoint"))


def calibrated(
    checkpoint: Checkpoint, work: Path, options: CalibrationOptions = OPTIONS, progress: Notes | None = None
) -> tuple[Recipe, Judges]:
    plan = family("grm").plan(checkpoint, Options())
    return calibrate(
        lambda: build_model(family("grm").plan(checkpoint, Options()), "tiny"),
        plan,
        "grm",
        checkpoint,
        EXAMPLES,
        options,
        work,
        progress or Notes(),
    )


def test_a_products_sensitivity_is_what_quantising_its_group_alone_does_to_the_scores(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    recipe, judges = calibrated(checkpoint, tmp_path)
    rows = judges.asked.rows
    probed = [rows[row] for row in probe_rows([len(row) for row in rows], 4 * judges.asked.tokens // 12)]
    runner = StageRunner(threads=1)

    def scores(decided: Recipe) -> np.ndarray:
        model = build_model(family("grm").plan(checkpoint, Options()), "tiny")
        return run_stages(apply_recipe(model, decided), probed, runner)["score"]

    for activation in ("model.layers.0.mlp.down_proj.input", "model.layers.1.self_attn.q_proj.input"):
        alone = {
            name: gemm if gemm.input == activation else dataclasses.replace(gemm, decision="float")
            for name, gemm in recipe.gemms.items()
        }
        change = scores(dataclasses.replace(recipe, gemms=alone)) - scores(
            dataclasses.replace(
                recipe, gemms={n: dataclasses.replace(g, decision="float") for n, g in recipe.gemms.items()}
            )
        )
        expected = float(np.sqrt(np.mean(change**2))) / float(judges.outputs["score"].std())
        (measured,) = {gemm.sensitivity for gemm in recipe.gemms.values() if gemm.input == activation}
        assert measured == pytest.approx(expected, rel=0.02)
        assert measured > 0


def test_hidden_states_on_the_disk_give_the_same_recipe(checkpoint: Checkpoint, tmp_path: Path) -> None:
    held, _ = calibrated(checkpoint, tmp_path / "held")
    spilled, _ = calibrated(checkpoint, tmp_path / "spilled", dataclasses.replace(OPTIONS, memory_bytes=0))
    assert spilled.to_yaml() == held.to_yaml()
    assert list((tmp_path / "spilled").rglob("*.safetensors"))
    assert not (tmp_path / "held").exists()


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
def test_an_interrupted_calibration_goes_on_at_its_layer_and_ends_in_the_same_recipe(
    checkpoint: Checkpoint, tmp_path: Path, memory_bytes: int
) -> None:
    options = dataclasses.replace(OPTIONS, memory_bytes=memory_bytes, seconds_between_saves=0.0)
    with pytest.raises(KeyboardInterrupt):
        calibrated(checkpoint, tmp_path / "work", options, Notes(stop_after=3))
    notes = Notes()
    recipe, judges = calibrated(checkpoint, tmp_path / "work", options, notes)
    whole, expected = calibrated(checkpoint, tmp_path / "other", options)
    assert notes.lines == ["continuing the interrupted calibration after 3 layers"]
    assert recipe.to_yaml() == whole.to_yaml()
    np.testing.assert_array_equal(judges.outputs["score"], expected.outputs["score"])


def test_an_export_killed_while_calibrating_leaves_no_bundle_and_goes_on(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    output, work = tmp_path / "bundle", tmp_path / ".bundle.calibration"
    program = f"""
import os, signal
from pathlib import Path
from rm_calibration.conversations import default_conversations
from rm_export.bundle import Silent
from rm_export.calibrate import CalibrationOptions
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_export.quantisation import Quantisation
class Killing(Silent):
    steps = 0
    def advance(self, done):
        self.steps += done
        if self.steps == 2:
            os.kill(os.getpid(), signal.SIGKILL)
options = CalibrationOptions(threads=1, alphas=(0.0, 0.5), max_flip_rate=1.0, seconds_between_saves=0.0)
export_checkpoint(open_checkpoint(Path({str(checkpoint.folder)!r})), Path({str(output)!r}), family="grm",
    precision="int8", quantisation=Quantisation(examples=default_conversations()[:16], options=options),
    progress=Killing())
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", program], check=False, env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert not output.exists()
    assert (work / "progress.json").is_file()
    notes = Notes()
    quantisation = Quantisation(examples=EXAMPLES, options=dataclasses.replace(OPTIONS, seconds_between_saves=0.0))
    export_checkpoint(checkpoint, output, family="grm", precision="int8", quantisation=quantisation, progress=notes)
    assert notes.lines[0] == "continuing the interrupted calibration after 2 layers"
    assert open_bundle(output, verify=True).manifest.recipe
    assert not work.exists()


@pytest.mark.parametrize("damage", ["cut a state", "cut the findings", "cut the progress", "no progress"])
def test_damaged_resume_files_are_named_in_one_line_and_the_calibration_starts_over(
    checkpoint: Checkpoint, tmp_path: Path, damage: str
) -> None:
    options = dataclasses.replace(OPTIONS, seconds_between_saves=0.0)
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        calibrated(checkpoint, work, options, Notes(stop_after=2))
    hurt = {
        "cut a state": next(work.glob("stage-*/*.safetensors")),
        "cut the findings": next(work.glob("stage-*/findings.yaml")),
        "cut the progress": work / "progress.json",
        "no progress": work / "progress.json",
    }[damage]
    content = hurt.read_bytes()
    hurt.unlink() if damage == "no progress" else hurt.write_bytes(content[: len(content) // 2])
    notes = Notes()
    recipe, _ = calibrated(checkpoint, work, options, notes)
    assert recipe.to_yaml() == calibrated(checkpoint, tmp_path / "other", options)[0].to_yaml()
    if damage != "no progress":
        (line,) = notes.lines
        assert "starting over" in line
        assert "\n" not in line


def test_another_checkpoints_interrupted_calibration_is_not_continued(checkpoint: Checkpoint, tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, seconds_between_saves=0.0)
    with pytest.raises(KeyboardInterrupt):
        calibrated(checkpoint, tmp_path / "work", options, Notes(stop_after=2))
    notes = Notes()
    calibrated(open_checkpoint(checkpoints.grm(tmp_path / "other", seed=7)), tmp_path / "work", options, notes)
    assert ["another checkpoint" in line for line in notes.lines] == [True]


def test_stages_that_took_little_time_are_not_saved(tmp_path: Path) -> None:
    resume = Resume(tmp_path / "work", "key", seconds_between_saves=3600.0)
    states = States(resume.stage_folder(1))
    states["a"] = {"x": np.zeros(3, np.float32)}
    resume.save(1, states, lambda: pytest.fail("nothing is to be written"))
    assert not (tmp_path / "work").exists()


def test_states_beyond_the_budget_lie_in_files_and_come_back_the_same(tmp_path: Path) -> None:
    states = States(tmp_path, memory_bytes=100)
    arrays = {name: np.arange(20, dtype=np.float32) + place for place, name in enumerate("abc")}
    for name, array in arrays.items():
        states[name] = {"x": array}
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    for name, array in arrays.items():
        np.testing.assert_array_equal(states[name]["x"], array)
    states["b"] = {"x": np.zeros(1, np.float32)}
    assert states["b"]["x"].size == 1
    assert sorted(states) == ["a", "b", "c"]


def test_the_proof_on_the_written_file_is_what_the_engine_gives(checkpoint: Checkpoint, tmp_path: Path) -> None:
    quantisation = Quantisation(examples=EXAMPLES, options=OPTIONS)
    output = export_checkpoint(
        checkpoint, tmp_path / "bundle", family="grm", precision="int8", quantisation=quantisation
    )
    bundle = open_bundle(output)
    import onnx_ir as ir

    rows = [np.random.default_rng(seed).integers(5, 900, size=20 + seed) for seed in range(4)]
    staged = run_stages(ir.load(output / "model.onnx"), rows, StageRunner(1, output))["score"]
    whole = run_rows(open_engine(bundle, threads=1), rows, bundle.manifest.pad_token_id)["score"]
    np.testing.assert_allclose(staged, whole, rtol=1e-5, atol=1e-6)


def edited(checkpoint: Checkpoint, folder: Path, name: str, value: float) -> Checkpoint:
    """A copy of the checkpoint in which one channel of a tensor holds another value."""
    import shutil

    shutil.copytree(checkpoint.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name][3] = value
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


def test_activations_that_are_not_finite_stop_the_export_in_one_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    broken = edited(checkpoint, tmp_path / "copy", "model.layers.1.input_layernorm.weight", np.inf)
    with pytest.raises(CalibrationError, match=r"activation 'model\.layers\.1\.self_attn\.q_proj\.input' holds") as hit:
        calibrated(broken, tmp_path / "work")
    assert "\n" not in str(hit.value)


def test_a_channel_that_is_always_zero_is_quantised_and_not_smoothed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    dead = edited(checkpoint, tmp_path / "copy", "model.layers.1.input_layernorm.weight", 0.0)
    options = dataclasses.replace(OPTIONS, alphas=(0.5,))
    recipe, _ = calibrated(dead, tmp_path / "work", options)
    smoothing = recipe.activations["model.layers.1.self_attn.q_proj.input"].smoothing
    assert smoothing is not None
    assert smoothing[3] == 0


def test_an_activation_that_is_always_zero_is_exact(checkpoint: Checkpoint, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(checkpoint.folder, tmp_path / "copy")
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"][:] = 0
    save_file(tensors, tmp_path / "copy" / "model.safetensors")
    recipe, _ = calibrated(open_checkpoint(tmp_path / "copy"), tmp_path / "work")
    activation = recipe.activations["model.layers.1.self_attn.q_proj.input"]
    assert activation.largest == 0
    assert activation.scale > 0
    assert {g.sensitivity for g in recipe.gemms.values() if g.input == "model.layers.1.self_attn.q_proj.input"} == {0}


def test_embedding_tables_stay_float_where_int8_ones_alone_move_the_scores(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rm_export.calibrate.TABLE_EFFECT", 1e9)
    taken, _ = calibrated(checkpoint, tmp_path / "taken")
    effect = taken.embeddings.sensitivity
    assert taken.embeddings.decision == "int8"
    assert effect is not None
    assert effect > 0
    monkeypatch.setattr("rm_export.calibrate.TABLE_EFFECT", effect / 2)
    refused, _ = calibrated(checkpoint, tmp_path / "refused")
    assert refused.embeddings.decision == "float"
    assert refused.embeddings.sensitivity == effect
