"""verify finds nothing where a bundle is right, everything where it is not, and never leaves a broken bundle."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import checkpoints
from conversations import preference_groups
from rm_calibration.conversations import Example
from rm_export import proof, publish, verify
from rm_export.checkpoint import open_checkpoint
from rm_export.errors import ExportError
from rm_export.exporter import export_checkpoint
from rm_export.options import Options
from rm_export.parity import Parity
from rm_export.verify import verify_bundle
from rm_runtime.bundle import MANIFEST_NAME, open_bundle, sha256_of
from rm_runtime.errors import RequestError

pytest.importorskip("torch")
pytest.importorskip("transformers")

FLOAT32 = 5e-5
"""Largest error in standard deviations: two float32 evaluations that sum in another order."""
FLOAT16 = 5e-2
"""Largest error in standard deviations: float16 rounds to 2^-11, through a few layers."""

FAMILIES: dict[str, Callable[..., Path]] = {
    "armorm": checkpoints.armorm,
    "grm": checkpoints.grm,
    "scalar": checkpoints.scalar,
    "dpa-rm": checkpoints.dpa_rm,
    "pair-pm": checkpoints.pair_pm,
    "pairrm": checkpoints.pairrm,
}
PAIRWISE = ("pair-pm", "pairrm")


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [Example(tuple(messages), tuple(responses)) for messages, responses in preference_groups(6, responses=3)]


def exported(folder: Path, family: str = "scalar", precision: str = "fp32", **options: Any) -> Path:
    """folder/bundle, made from a tiny checkpoint in folder/checkpoint."""
    checkpoint = open_checkpoint(FAMILIES[family](folder / "checkpoint", **options))
    return export_checkpoint(checkpoint, folder / "bundle", family=family, precision=precision)


def verified(folder: Path, examples: list[Example] | None, **arguments: Any) -> Parity:
    checkpoint = open_checkpoint(folder / "checkpoint")
    return verify_bundle(folder / "bundle", checkpoint, examples, threads=1, **arguments)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_float32_bundle_decides_as_its_reference(tmp_path: Path, family: str, examples: list[Example]) -> None:
    bundle = exported(tmp_path, family)
    parity = verified(tmp_path, examples)
    assert parity.agreement.relative_max_error is not None
    assert parity.agreement.relative_max_error < FLOAT32
    assert parity.order.flips == parity.refused_by_one == 0
    assert parity.same_decisions
    assert parity.agreement.n == (36 if family in PAIRWISE else 18)
    assert parity.preferences.pairs == 18  # three answers to each of six prompts
    assert {error.output for error in parity.outputs} == {
        output.name for output in open_bundle(bundle).manifest.outputs
    }
    assert all(error.max_error < FLOAT32 * max(1, error.std) for error in parity.outputs)
    assert sum(bucket.rows for bucket in parity.lengths) == parity.agreement.n


@pytest.mark.parametrize("layout", ["PairRM-hf", "PairRM"])
def test_both_layouts_of_pairrm_are_verified(tmp_path: Path, layout: str, examples: list[Example]) -> None:
    exported(tmp_path, "pairrm", layout=layout)
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})
    parity = verified(tmp_path, [*examples, Example(turns, ("d", "e"))])
    assert parity.preferences.pairs == 19
    assert parity.preferences.flips == parity.refused_by_one == 0
    assert parity.verdict == "0 of 19 preferences decided differently"


def test_armorm_is_compared_objective_by_objective(tmp_path: Path, examples: list[Example]) -> None:
    exported(tmp_path, "armorm", "fp16")
    parity = verified(tmp_path, examples)
    names = [(error.output, error.objective) for error in parity.outputs]
    assert len(names) == 1 + 3 * 19
    assert names[0] == ("score", None)
    assert ("gating", "helpsteer-verbosity") in names
    relative = [error.max_error / error.std for error in parity.outputs]
    assert 0 < max(relative) < FLOAT16
    assert parity.verdict.endswith("pairs ranked differently")


def test_the_bundle_holds_its_proof_and_stays_whole(tmp_path: Path, examples: list[Example]) -> None:
    bundle = exported(tmp_path)
    for _ in range(2):  # the second time over the files of the first
        parity = verified(tmp_path, examples)
        manifest = open_bundle(bundle, verify=True).manifest
        assert {"parity.json", "parity.html"} <= set(manifest.files)
        assert manifest.parity == parity.summary()
        document = json.loads((bundle / "parity.json").read_text("utf-8"))
        assert document == json.loads(parity.to_json())
        assert document["verdict"] == parity.verdict
        assert len(document["rows"]) == 18


def test_the_bundle_can_be_loaded_after_every_single_write(
    tmp_path: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported(tmp_path)
    verified(tmp_path, examples)
    writes = []

    def replace_and_look(path: Path, content: bytes) -> None:
        replace_file(path, content)
        writes.append(path.name)
        open_bundle(bundle, verify=True)

    replace_file = proof.replace_file
    for module in (proof, publish):
        monkeypatch.setattr(module, "replace_file", replace_and_look)
    verified(tmp_path, examples[:3])  # other sizes than before
    assert writes == [MANIFEST_NAME, "parity.json", "parity.html", MANIFEST_NAME]


@pytest.mark.parametrize("written", range(4))
def test_a_killed_verification_leaves_a_bundle_that_can_be_verified_again(
    tmp_path: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    bundle = exported(tmp_path)
    verified(tmp_path, examples)
    replace_file, left = proof.replace_file, [written]

    def killed(path: Path, content: bytes) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        replace_file(path, content)

    for module in (proof, publish):
        monkeypatch.setattr(module, "replace_file", killed)
    with pytest.raises(KeyboardInterrupt):
        verified(tmp_path, examples[:3])
    open_bundle(bundle, verify=True)
    for module in (proof, publish):
        monkeypatch.setattr(module, "replace_file", replace_file)
    assert open_bundle(bundle, verify=True).manifest.parity != verified(tmp_path, examples[:2]).summary()
    assert open_bundle(bundle, verify=True).manifest.parity is not None


def test_an_output_folder_leaves_the_bundle_as_it_is(tmp_path: Path, examples: list[Example]) -> None:
    bundle = exported(tmp_path)
    before = {path.name: sha256_of(path) for path in bundle.iterdir()}
    verified(tmp_path, examples, output=tmp_path / "proof" / "here")
    assert {path.name: sha256_of(path) for path in bundle.iterdir()} == before
    assert sorted(path.name for path in (tmp_path / "proof" / "here").iterdir()) == ["parity.html", "parity.json"]


def test_what_else_was_added_meanwhile_stays_listed(
    tmp_path: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported(tmp_path)
    publish_parity = verify.publish_parity

    def add_and_publish(opened: Any, *arguments: Any) -> None:
        manifest = json.loads((bundle / MANIFEST_NAME).read_text("utf-8"))
        (bundle / "engine.plan").write_bytes(b"plan")
        manifest["files"]["engine.plan"] = {"size": 4, "sha256": sha256_of(bundle / "engine.plan")}
        (bundle / MANIFEST_NAME).write_text(json.dumps(manifest), "utf-8")
        publish_parity(opened, *arguments)

    monkeypatch.setattr(verify, "publish_parity", add_and_publish)
    verified(tmp_path, examples)
    assert "engine.plan" in open_bundle(bundle, verify=True).manifest.files


def test_a_bundle_that_was_replaced_meanwhile_keeps_its_own_manifest(
    tmp_path: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported(tmp_path)
    publish_parity = verify.publish_parity

    def export_and_publish(*arguments: Any) -> None:
        other = open_checkpoint(checkpoints.scalar(tmp_path / "other", seed=1))
        export_checkpoint(other, bundle, family="scalar", force=True)
        publish_parity(*arguments)

    monkeypatch.setattr(verify, "publish_parity", export_and_publish)
    with pytest.raises(ExportError, match="was replaced in the meantime"):
        verified(tmp_path, examples)
    assert open_bundle(bundle, verify=True).manifest.parity is None


def test_a_wrong_weight_shows(tmp_path: Path, examples: list[Example]) -> None:
    bundle = exported(tmp_path)
    negate_initializer(bundle, "score.weight")
    parity = verified(tmp_path, examples)
    assert parity.order.flips == parity.order.pairs > 100
    assert not parity.same_decisions
    assert parity.agreement.spearman == pytest.approx(-1)


def negate_initializer(bundle: Path, name: str) -> None:
    """Change a small inline weight of the graphs, and the manifest's record of them."""
    manifest = json.loads((bundle / MANIFEST_NAME).read_text("utf-8"))
    for graph in manifest["graphs"].values():
        path = bundle / graph
        model = ir.load(path)
        weight = next(value for key, value in model.graph.initializers.items() if key.endswith(name))
        assert weight.const_value is not None
        weight.const_value = ir.tensor(-weight.const_value.numpy(), name=weight.name)
        ir.save(model, path)
        manifest["files"][graph] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest), "utf-8")


def test_both_sides_refuse_the_same_rows(tmp_path: Path) -> None:
    exported(tmp_path, "armorm")
    user = {"role": "user", "content": "Hello"}
    answer = {"role": "assistant", "content": "Hi, how are you?"}
    examples = [
        Example((user,), ("Good day.", "What?")),
        Example((answer,)),  # no user turn before it: ArmoRM's gate has nothing to read
        Example((user, answer)),
    ]
    parity = verified(tmp_path, examples)
    assert [row.reference is None for row in parity.rows] == [False, False, True, False]
    assert (parity.refused_by_both, parity.refused_by_one) == (1, 0)
    assert parity.agreement.n == 3
    assert {row.row for row in parity.agreement.worst} == {0, 1, 3}


def test_a_row_that_only_one_side_scores_is_a_fault(
    tmp_path: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(tmp_path)
    run = verify.run_rows

    def forgetful(*arguments: Any) -> dict[str, np.ndarray]:
        outputs = run(*arguments)
        outputs["score"][2] = np.nan
        return outputs

    monkeypatch.setattr(verify, "run_rows", forgetful)
    parity = verified(tmp_path, examples)
    assert parity.refused_by_one == 1
    assert not parity.same_decisions
    assert parity.verdict.endswith("and 1 row is scored by one side only")


def test_truncated_and_unrendered_rows_are_counted(tmp_path: Path, examples: list[Example]) -> None:
    checkpoint = open_checkpoint(checkpoints.scalar(tmp_path / "checkpoint", backbone="gemma"))
    options = Options(max_length=60)
    export_checkpoint(checkpoint, tmp_path / "bundle", family="scalar", options=options)
    system = Example(({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}), ("Yo",))
    parity = verified(tmp_path, [*examples, system])
    assert parity.truncated > 5
    assert max(row.tokens for row in parity.rows) == 60
    assert list(parity.not_rendered.values()) == [1]
    assert "System role not supported" in next(iter(parity.not_rendered))


@pytest.mark.parametrize("family", PAIRWISE)
def test_pairwise_families_need_pairs(tmp_path: Path, family: str) -> None:
    exported(tmp_path, family)
    only = Example(({"role": "user", "content": "Hi"},), ("Hello",))
    with pytest.raises(RequestError, match="at least two responses"):
        verified(tmp_path, [only])


def test_another_checkpoint_is_refused(tmp_path: Path, examples: list[Example]) -> None:
    bundle = exported(tmp_path)
    other = open_checkpoint(checkpoints.scalar(tmp_path / "other", backbone="mistral"))
    with pytest.raises(ExportError, match="name the bundle's own checkpoint"):
        verify_bundle(bundle, other, examples)


def test_the_default_conversations_are_used_and_progress_is_told(tmp_path: Path) -> None:
    exported(tmp_path)
    told: list[tuple[int, int]] = []
    parity = verified(tmp_path, None, on_row=lambda done, rows: told.append((done, rows)))
    assert parity.examples >= 60
    assert told == [(done, len(parity.rows)) for done in range(1, len(parity.rows) + 1)]
    assert parity.order.pairs > 20_000
    assert parity.order.flips == 0


def test_importing_verify_does_not_import_torch() -> None:
    program = "import sys, rm_export.verify; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0
