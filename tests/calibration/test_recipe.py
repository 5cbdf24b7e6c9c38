"""Recipes: the same text for the same numbers, every float32 to the bit, and one line for what is wrong."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rm_calibration.errors import CalibrationError
from rm_calibration.recipe import (
    Activation,
    Calibration,
    Clip,
    Gemm,
    Recipe,
    Source,
    recipe_schema,
    shortest_float32,
)

Q_PROJ = "model.layers.{}.self_attn.q_proj.weight"

RECIPE = Recipe(
    family="armorm",
    source=Source("RLHFlow/ArmoRM-Llama3-8B-v0.1", "0" * 64),
    calibration=Calibration("1" * 64, conversations=100, tokens=41_234, observer="mse"),
    activations={
        "layers.10.attn_in": Activation(3.25, 3.25 / 127, "mse", 4.5, 4.5),
        "layers.2.attn_in": Activation(7.1, 7.1 / 127, "mse", 90.0, 8.0, 0.6, tuple(range(-12, 13)) + (0,) * 200),
    },
    gemms={
        Q_PROJ.format(10): Gemm("layers.10.attn_in", "int8", "within the budget", Clip("mse", 0.987), 0.0012),
        Q_PROJ.format(2): Gemm("layers.2.attn_in", "float", "its int8 form alone flips 3 % of held-out pairs"),
    },
    versions={"rm-export": "0.1.0", "numpy": "2.10"},
)

singles = st.floats(2.0**-126, float(np.finfo(np.float32).max), width=32)
lines = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1, max_size=20)


def edited(pattern: str, replacement: str) -> str:
    text, count = re.subn(pattern, replacement, RECIPE.to_yaml(), count=1)
    assert count
    return text


def refusal(text: str | bytes) -> str:
    with pytest.raises(CalibrationError) as caught:
        Recipe.from_yaml(text, "r.yaml")
    message = str(caught.value)
    assert message.startswith("r.yaml")
    assert "\n" not in message
    return message


def test_a_recipe_survives_the_round_trip() -> None:
    assert Recipe.from_yaml(RECIPE.to_yaml()) == RECIPE
    assert Recipe.from_yaml(RECIPE.to_yaml().encode()).to_yaml() == RECIPE.to_yaml()


def test_a_recipe_reads_like_this() -> None:
    text = RECIPE.to_yaml()
    assert text.startswith(
        "format: 1\nfamily: armorm\nsource:\n  id: RLHFlow/ArmoRM-Llama3-8B-v0.1\n  config_sha256: '000"
    )
    assert "  numpy: '2.10'\n" in text
    assert "  layers.10.attn_in:\n    amax: 3.25\n    scale: 0.025590552\n    observer: mse\n" in text
    assert "    smoothing: |\n      LKJIHGFEDCBA0abcdefghijkl00000" in text
    assert "    reason: within the budget\n    clip:\n      rule: mse\n      mean_ratio: 0.987\n" in text
    assert max(map(len, text.splitlines())) < 140


def test_names_stand_in_natural_order_whatever_order_they_came_in() -> None:
    names = re.findall(r"^  layers\.(\d+)", RECIPE.to_yaml(), re.MULTILINE)
    assert names == ["2", "10"]
    backwards = replace(
        RECIPE,
        activations=dict(reversed(list(RECIPE.activations.items()))),
        gemms=dict(reversed(list(RECIPE.gemms.items()))),
        versions=dict(reversed(list(RECIPE.versions.items()))),
    )
    assert backwards.to_yaml() == RECIPE.to_yaml()
    assert backwards.digest() == RECIPE.digest()


def test_any_change_changes_the_digest() -> None:
    digests = {
        RECIPE.digest(),
        replace(RECIPE, family="grm").digest(),
        replace(RECIPE, versions={}).digest(),
        replace(RECIPE, gemms={name: replace(gemm, sensitivity=0.5) for name, gemm in RECIPE.gemms.items()}).digest(),
    }
    assert len(digests) == 4


@given(singles)
def test_a_float32_is_written_short_and_read_to_the_bit(value: float) -> None:
    shortest = shortest_float32(value)
    assert np.float32(shortest) == np.float32(value)
    assert shortest_float32(shortest) == shortest
    activation = Activation(value, value, "mse", value, value)
    text = replace(RECIPE, activations={"x": activation}, gemms={"w": Gemm("x", "int8", "r")}).to_yaml()
    assert Recipe.from_yaml(text).activations["x"] == activation
    assert len(re.findall(r"amax: (.*)", text)[0]) <= 40


@given(lines, lines, st.lists(st.integers(-12, 12), min_size=1, max_size=300))
def test_any_name_reason_and_smoothing_survives(name: str, reason: str, smoothing: list[int]) -> None:
    recipe = replace(
        RECIPE,
        activations={name: Activation(1, 1 / 127, "entropy", 1, 1, 0.5, tuple(smoothing))},
        gemms={name: Gemm(name, "int8", reason)},
        versions={name: reason},
    )
    text = recipe.to_yaml()
    assert Recipe.from_yaml(text) == recipe
    assert yaml.safe_load(text)["gemms"][name]["reason"] == reason


def test_exponents_come_as_int8_and_only_for_the_right_number_of_channels() -> None:
    smoothed = RECIPE.activations["layers.2.attn_in"]
    np.testing.assert_array_equal(smoothed.exponents(225)[:25], np.arange(-12, 13))
    np.testing.assert_array_equal(RECIPE.activations["layers.10.attn_in"].exponents(4), [0, 0, 0, 0])
    with pytest.raises(CalibrationError, match="smooths 225 channels where the model has 4096"):
        smoothed.exponents(4096)


@pytest.mark.parametrize(
    ("pattern", "replacement", "reason"),
    [
        ("format: 1", "format: 2", "format version 2, this rm_calibration reads 1"),
        ("format: 1\n", "", "format version None"),
        ("armorm", "bert", "at family: 'bert' is not one of"),
        ("amax: 3.25", "amax: much", "at activations/layers.10.attn_in/amax: 'much' is not of type 'number'"),
        ("amax: 3.25", "amax: .nan", "at activations/layers.10.attn_in/amax: not a finite number"),
        ("amax: 3.25", "amax: .inf", "at activations/layers.10.attn_in/amax"),
        ("amax: 3.25", "amax: -1.0", "at activations/layers.10.attn_in/amax"),
        ("scale: 0.0\\d+", "scale: 0.0", "/scale: 0.0 is less than the minimum"),
        ("\n  observer: mse", "\n  observer: best", "at calibration/observer: 'best'"),
        ("LKJ", "LKz", "at activations/layers.2.attn_in/smoothing"),
        ("decision: int8", "decision: int4", "'int4' is not one of \\['int8', 'float'\\]"),
        ("reason: within the budget", "reason: |\n      a\n      b", "/reason: "),
        ("mean_ratio: 0.987", "mean_ratio: 1.5", "/mean_ratio: 1.5 is greater"),
        ("sensitivity: 0.0012", "sensitivity: low", "/sensitivity"),
        ("sensitivity: 0.0012", "sensitivty: 0.0012", "'sensitivity' is a required property"),
        ("(?s)gemms:.*(?=calibration:)", "gemms: {}\n", "at gemms: "),
        ("(?s)gemms:.*(?=calibration:)", "", "'gemms' is a required property"),
        ("input: layers.10.attn_in", "input: layers.11.attn_in", "reads activation 'layers.11.attn_in'"),
        ("tokens: 41234", "tokens: 41234\n  tokens: 7", "line \\d+: 'tokens' stands twice"),
        ("family: armorm", "family: &f armorm\nx: *f", "line \\d+: YAML aliases are refused"),
        ("family: armorm", "family: !!python/object/apply:os.system [id]", "is not YAML .*python/object"),
        ("family: armorm", "family: [", "is not YAML"),
        ("family: armorm", "? [a, b]\n: c", "is not YAML|at the top level"),
        ("family: armorm", "family: 2024-99-99", "is not YAML"),
    ],
)
def test_a_damaged_recipe_is_refused_in_one_line(pattern: str, replacement: str, reason: str) -> None:
    assert re.search(reason, refusal(edited(pattern, replacement)))


@pytest.mark.parametrize("text", ["", "a", "[]", "- a", b"\xff\xfe\xfa", "\x00", "{" * 5000, "null", "a: \ud800"])
def test_what_is_no_recipe_is_refused_in_one_line(text: str | bytes) -> None:
    refusal(text)


def test_a_truncated_recipe_is_refused_wherever_it_ends() -> None:
    text = RECIPE.to_yaml()
    for end in range(0, len(text) - 1, 7):
        refusal(text[:end])


def test_aliases_that_stand_for_billions_are_refused_at_once() -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert "aliases" in refusal("a0: &a0 [x]\n" + "\n".join(levels))


def test_a_text_beyond_every_recipe_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rm_calibration.recipe_yaml._LARGEST_TEXT", 100)
    assert "a recipe has less than 100" in refusal("x" * 101)


def test_a_recipe_fits_its_own_checkpoint_only() -> None:
    RECIPE.require_fit("armorm", "0" * 64, RECIPE.gemms)
    with pytest.raises(CalibrationError, match="is for family armorm, the checkpoint is grm"):
        RECIPE.require_fit("grm", "0" * 64, RECIPE.gemms)
    with pytest.raises(CalibrationError, match="config 000000000000, this checkpoint's is abababababab"):
        RECIPE.require_fit("armorm", "ab" * 32, RECIPE.gemms)
    with pytest.raises(CalibrationError, match=r"the checkpoint has no GEMM .*layers\.10\..* \(1 names differ\)"):
        RECIPE.require_fit("armorm", "0" * 64, [Q_PROJ.format(2)])
    with pytest.raises(CalibrationError, match="the recipe has no GEMM 'other'"):
        RECIPE.require_fit("armorm", "0" * 64, [*RECIPE.gemms, "other"])


def test_the_schema_is_a_schema_and_names_every_field() -> None:
    from jsonschema import Draft202012Validator

    schema = recipe_schema()
    Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema
    document = yaml.safe_load(RECIPE.to_yaml())
    assert set(document) == set(schema["required"]) == set(schema["properties"])
