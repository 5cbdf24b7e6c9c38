"""The benchmark's hard checkpoints: the same function in float, with the activations that make int8 difficult."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import checkpoints
from activation_ranges import Range, activation_ranges, typical
from asked import Asked, ask
from hardening import MASSIVE, harden_deberta, harden_decoder
from massive_token import Typical
from rm_calibration.conversations import Example
from rm_export.checkpoint import open_checkpoint
from rm_export.demo import checkpoint_path
from rm_export.demo.preferences import comparisons
from rm_export.exporter import export_checkpoint

EXAMPLES = [
    Example(tuple(one.messages), tuple(answer.text for answer in one.answers[:2]))
    for one in comparisons(12, 4242, "held_out")
]
SAME = 1e-5
"""Of the scores' deviation: rounding of other, equivalent, float32 products."""


@pytest.fixture(scope="module")
def asked() -> Asked:
    return ask(checkpoint_path(), EXAMPLES)


@pytest.fixture(scope="module")
def medians(asked: Asked) -> Typical:
    return typical(activation_ranges(checkpoint_path(), asked.rows))


@pytest.fixture(scope="module")
def hardened(medians: Typical, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return harden_decoder(checkpoint_path(), tmp_path_factory.mktemp("hardened") / "demo", medians)


@pytest.fixture(scope="module")
def ranges(hardened: Path, asked: Asked) -> dict[str, Range]:
    return activation_ranges(hardened, asked.rows)


def float_error(asked: Asked, one: Path, other: Path, folder: Path) -> float:
    """The largest difference of two checkpoints' float answers, in deviations."""
    answers = [
        asked.answers(export_checkpoint(open_checkpoint(path), folder / name), threads=1)
        for name, path in (("one", one), ("other", other))
    ]
    return float(np.abs(answers[0] - answers[1]).max() / answers[0].std())


def test_the_hardened_demo_is_the_demo_in_float(asked: Asked, hardened: Path, tmp_path: Path) -> None:
    assert float_error(asked, checkpoint_path(), hardened, tmp_path) < SAME


def test_a_hardened_pairrm_is_itself_in_float(tmp_path: Path) -> None:
    drawn = checkpoints.pairrm(tmp_path / "drawn")
    hardened = harden_deberta(drawn, tmp_path / "hardened")
    assert float_error(ask(drawn, EXAMPLES[:4]), drawn, hardened, tmp_path) < SAME


def test_a_value_scaled_without_its_reader_would_be_noticed(asked: Asked, hardened: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    broken = shutil.copytree(hardened, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.self_attn.v_proj.weight"][0] *= 1.01
    save_file(tensors, broken / "model.safetensors")
    assert float_error(asked, checkpoint_path(), broken, tmp_path) > SAME


def test_the_first_token_is_hundreds_of_medians_wide_where_large_decoders_have_it(ranges: dict[str, Range]) -> None:
    for layer, kind in [
        (0, "residual"),
        (0, "down input"),
        (1, "attention input"),
        (1, "MLP input"),
        (2, "down input"),
    ]:
        assert 300 < ranges[f"layer {layer} {kind}"].first < 2 * MASSIVE, (layer, kind)


def test_the_last_mlp_takes_the_massive_activation_out_of_the_residual_stream(ranges: dict[str, Range]) -> None:
    assert ranges["layer 1 residual"].first > 300
    assert ranges["layer 2 residual"].first < 30


def test_ordinary_tokens_have_outlier_channels_in_every_norm_and_mlp(ranges: dict[str, Range]) -> None:
    for layer in range(3):
        for kind in ("attention input", "MLP input", "down input"):
            assert ranges[f"layer {layer} {kind}"].channel > 30, (layer, kind)
