"""fp8 export: E4M3 on both sides of the products that a recipe quantises, float16 around, for TensorRT."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import checkpoints
from graph_runs import ROWS, observed_scales, scores
from rm_calibration.conversations import default_conversations
from rm_calibration.errors import CalibrationError
from rm_calibration.fidelity import check_fidelity, weight_fidelity
from rm_calibration.formats import FLOAT8, FORMATS, INT8
from rm_calibration.recipe import Recipe
from rm_calibration.smoothing import smoothing_factors
from rm_calibration.weights import channel_scales, clip_ratios, dequantise, quantise_with
from rm_export.build import build_model
from rm_export.bundle import Silent
from rm_export.calibrate import CalibrationOptions, apply_recipe, calibrate
from rm_export.checkpoint import Checkpoint, open_checkpoint
from rm_export.cli import main
from rm_export.demo import checkpoint_path
from rm_export.exporter import export_checkpoint
from rm_export.families import family
from rm_export.inspection import print_bundle
from rm_export.lowering import TARGETS, lower
from rm_export.lowering.gemms import find_gemms, gemm_groups
from rm_export.lowering.packing import ChannelPacking, PackedScales, PackedValues, rounded_up
from rm_export.lowering.quantise import Quantise
from rm_export.options import Options
from rm_export.quantisation import Quantisation
from rm_export.tensors import Computed, to_float32
from rm_runtime.bundle import open_bundle
from rm_runtime.engines import open_engine

EXAMPLES = default_conversations()[:24]
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)

Build = Callable[[], ir.Model]


def build_of(checkpoint: Checkpoint, name: str) -> Build:
    return lambda: build_model(family(name).plan(checkpoint, Options()), "tiny")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(checkpoints.grm(tmp_path_factory.mktemp("fp8") / "checkpoint"))


@pytest.fixture(scope="module")
def recipe(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    build, plan = build_of(checkpoint, "grm"), family("grm").plan(checkpoint, Options())
    options = CalibrationOptions(threads=1, alphas=(0.5,))
    work = tmp_path_factory.mktemp("fp8") / "work"
    return calibrate(build, plan, "grm", checkpoint, EXAMPLES, options, work, Silent())[0]


@pytest.fixture(scope="module", params=["grm", "pairrm"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PairRM has float32 around some of its products."""
    folder = tmp_path_factory.mktemp("fp8")
    opened = open_checkpoint(getattr(checkpoints, request.param)(folder / "checkpoint"))
    quantisation = Quantisation(examples=EXAMPLES, options=CalibrationOptions(threads=1, max_flip_rate=1.0))
    return export_checkpoint(opened, folder / "bundle", precision="fp8", target="tensorrt", quantisation=quantisation)


def every_number() -> np.ndarray:
    """E4M3's 253 finite numbers, in order."""
    numbers = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)
    return np.unique(numbers[np.isfinite(numbers)])


def test_a_value_becomes_the_nearest_e4m3_number() -> None:
    numbers, rng = every_number(), np.random.default_rng(0)
    values = np.concatenate([rng.uniform(-448, 448, 5000), 2 ** rng.uniform(-12, 8, 5000)]).astype(np.float32)
    stored = FLOAT8.nearest(values).astype(np.float32)
    nearest = np.abs(values[:, None] - numbers).min(axis=1)
    np.testing.assert_array_equal(np.abs(values - stored), nearest)


def test_beyond_the_largest_number_a_value_saturates() -> None:
    stored = FLOAT8.nearest(np.float32([447, 464.1, 1e30, -np.inf]))
    assert stored.dtype == E4M3
    np.testing.assert_array_equal(stored.astype(np.float32), [448, 448, 448, -448])


def test_an_activations_scale_is_the_largest_smoothed_value_over_448(checkpoint: Checkpoint, recipe: Recipe) -> None:
    model = apply_recipe(build_of(checkpoint, "grm")(), recipe, FLOAT8)
    quantisers = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert len(quantisers) == len(recipe.activations)
    for node in quantisers:
        name = str(node.outputs[0].name).removesuffix(".fp8")
        largest = recipe.activations[name].largest_smoothed
        assert node.inputs[1].const_value.numpy() == np.float32(largest / 448)
        assert node.outputs[0].dtype == node.inputs[2].dtype == ir.DataType.FLOAT8E4M3FN


def test_a_weight_is_smoothed_and_its_channels_largest_becomes_448(checkpoint: Checkpoint, recipe: Recipe) -> None:
    build = build_of(checkpoint, "grm")
    floats = {}
    for name, gemms in gemm_groups(build().graph).items():
        for gemm in gemms:
            weight = to_float32(gemm.weight.const_value.numpy())
            factors = smoothing_factors(recipe.activations[name].exponents(len(weight)))
            floats[gemm.name] = weight * factors[:, None]
    folded = ("v_proj", "up_proj")  # their columns take up the next activation's smoothing
    seen = 0
    for node in apply_recipe(build(), recipe, FLOAT8).graph:
        widen = node.inputs[1].producer() if node.op_type == "MatMul" else None
        name = str(widen.inputs[0].name).removesuffix("_fp8") if widen is not None else ""
        if name not in floats or any(part in name for part in folded):
            continue
        values, scales = (value.const_value.numpy() for value in widen.inputs[:2])
        assert values.dtype == E4M3
        np.testing.assert_array_equal(np.abs(values.astype(np.float32)).max(axis=0), 448)
        np.testing.assert_array_equal(scales, np.abs(floats[name]).max(axis=0) / np.float32(448))
        np.testing.assert_array_equal(values, FLOAT8.nearest(floats[name] / scales))
        seen += 1
    assert seen == len(floats) - 2 * int(checkpoint.config["num_hidden_layers"])


def test_products_that_the_recipe_calls_float_are_not_fp8(checkpoint: Checkpoint, recipe: Recipe) -> None:
    kept = "model.layers.1.mlp.down_proj.weight"
    gemms = {**recipe.gemms, kept: dataclasses.replace(recipe.gemms[kept], decision="float", reason="a test")}
    decided = dataclasses.replace(recipe, gemms=gemms)
    model = apply_recipe(build_of(checkpoint, "grm")(), decided, FLOAT8)
    stored = {name for name, value in model.graph.initializers.items() if value.dtype == ir.DataType.FLOAT8E4M3FN}
    assert {name.removesuffix("_fp8") for name in stored if name.endswith("_fp8")} == set(gemms) - {kept}


def quantised(build: Build, precision: str) -> ir.Model:
    """As an export for TensorRT writes it, every product quantised, the scales of random rows."""
    model, numbers = build(), FORMATS[precision]
    names = frozenset(gemm.name for gemm in find_gemms(model.graph))
    model = Quantise(observed_scales(build(), numbers=numbers), names, numbers)(model).model
    return lower(model, precision, TARGETS["tensorrt"])


@pytest.mark.parametrize("name", ["grm", "pairrm"])
def test_fp8s_scores_lose_no_more_against_int8s_than_its_numbers_do(tmp_path: Path, name: str) -> None:
    """An fp8 number is off by 2.4 % of itself; a normal value in int8 by 0.9 % (step: 4 deviations / 127)."""
    build = build_of(open_checkpoint(getattr(checkpoints, name)(tmp_path / "checkpoint")), name)
    expected = scores(build())
    fp8, int8 = (scores(quantised(build, precision), optimised=False) - expected for precision in ("fp8", "int8"))
    assert np.isfinite(fp8).all()
    assert fp8.any()
    assert np.sqrt(np.mean(fp8**2)) <= 2.4 / 0.9 * np.sqrt(np.mean(int8**2))


def test_float16_surrounds_fp8_and_no_cast_separates_them(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = quantised(build_of(checkpoint, "grm"), "fp8")
    products = [node for node in model.graph if node.op_type == "MatMul" and "/layers." in str(node.name)]
    assert len(products) == len(list(find_gemms(build_of(checkpoint, "grm")().graph)))
    for node in products:
        for value in node.inputs:
            widen = value.producer()
            assert widen.op_type == "DequantizeLinear"
            assert widen.inputs[0].dtype == ir.DataType.FLOAT8E4M3FN
            assert widen.inputs[1].dtype == value.dtype == ir.DataType.FLOAT16
    ir.save(model, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


def test_scales_are_stored_in_float16_without_another_rounding(checkpoint: Checkpoint) -> None:
    ends = [
        [to_float32(one.inputs[1].const_value.numpy()) for one in (node, use.node)]
        for node in quantised(build_of(checkpoint, "grm"), "fp8").graph
        if node.op_type == "QuantizeLinear"
        for use in node.outputs[0].uses()
    ]
    assert ends
    assert all(written == read for written, read in ends)


def test_448_times_a_scale_must_fit_float16() -> None:
    scales = np.full((), 146.5, np.float32)  # 448 * 146.5 = 65632; int8's 127 * 146.5 would fit
    assert rounded_up(scales, ir.DataType.FLOAT16, "some.input", INT8.largest) == 146.5
    with pytest.raises(Exception, match=r"'some\.input' reaches 65632, beyond f16"):
        rounded_up(scales, ir.DataType.FLOAT16, "some.input", FLOAT8.largest)


def packed(weight: np.ndarray) -> np.ndarray:
    scales = channel_scales(weight, clip_ratios(weight, "none"), "w", FLOAT8)
    return dequantise(quantise_with(weight, scales, FLOAT8))


def test_normal_weights_correlate_with_their_fp8_copy_as_three_mantissa_bits_do() -> None:
    weight = np.random.default_rng(0).standard_normal((1024, 256)).astype(np.float32)
    assert weight_fidelity(weight, packed(weight)).correlation == pytest.approx(0.9997, abs=5e-5)


def test_no_spread_of_weights_makes_fp8_miss_its_bounds() -> None:
    """Every weight lies halfway between two numbers, where their distance is largest beside them."""
    rng = np.random.default_rng(0)
    halfway = 1.0625 * 2.0 ** rng.integers(-5, 1, (512, 64))
    mixed = (halfway * rng.choice([0.999, 1.001], halfway.shape)).astype(np.float32)
    for weight in (halfway.astype(np.float32), mixed):
        weight[0] = 1.75  # the largest of each channel
        check_fidelity("w", weight, packed(weight), "fp8")
    assert weight_fidelity(mixed, packed(mixed)).correlation < 0.9985


@pytest.mark.parametrize(
    "mistake", [np.transpose, lambda read: np.roll(read, 1, axis=0), lambda read: read * np.float32(1.1), np.abs]
)
def test_a_wrong_packing_of_fp8_fails_by_its_name(mistake: Callable[[np.ndarray], np.ndarray]) -> None:
    weight = np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32)
    with pytest.raises(CalibrationError, match="the fp8 copy of weight 'w'"):
        check_fidelity("w", weight, mistake(packed(weight)), "fp8")


def test_channels_that_float16_loses_become_zeros_and_do_not_fail_the_export() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32) * np.float32([1, 1e-9, 0])
    source = Computed(lambda: weight, ir.DataType.FLOAT, weight.shape, "weight")
    packing = ChannelPacking(source, ir.DataType.FLOAT16, FLOAT8)
    values, scales = PackedValues(packing, "weight").numpy(), PackedScales(packing, "weight").numpy()
    read = (values.astype(np.float32) * scales).astype(np.float16)
    assert (scales > 0).all()
    assert read[:, 0].any()
    assert not read[:, 1:].any()


def test_an_fp8_bundle_carries_its_recipe_and_its_proof(bundle: Path) -> None:
    manifest = open_bundle(bundle, verify=True).manifest
    assert (manifest.precision, manifest.target, manifest.recipe) == ("fp8", "tensorrt", "recipe.yaml")
    assert manifest.parity is not None
    assert manifest.parity["rows"] > 0
    assert {"recipe.yaml", "parity.json", "parity.html"} <= set(manifest.files)


def test_the_trained_demo_keeps_its_decisions_with_every_product_in_fp8(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    quantisation = Quantisation(examples=EXAMPLES, options=CalibrationOptions(threads=1, alphas=(0.5,)))
    export_checkpoint(
        open_checkpoint(checkpoint_path()), output, precision="fp8", target="tensorrt", quantisation=quantisation
    )
    parity = open_bundle(output, verify=True).manifest.parity
    assert parity is not None
    assert parity["spearman"] > 0.99
    recipe = Recipe.from_yaml((output / "recipe.yaml").read_bytes())
    assert {gemm.decision for gemm in recipe.gemms.values()} == {"int8"}


def test_what_is_shown_of_an_fp8_bundle_does_not_call_it_int8(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_bundle(open_bundle(bundle), hashes_checked=False)
    assert "products in fp8" in " ".join(capsys.readouterr().out.split())
    page = (bundle / "parity.html").read_text()
    assert ">fp8</td>" in page
    assert ">int8</td>" not in page


def test_onnx_runtime_scores_an_fp8_bundle_where_there_is_no_gpu(bundle: Path) -> None:
    feeds = {"input_ids": ROWS[0][None, :], "attention_mask": np.ones((1, len(ROWS[0])), np.int64)}
    outputs = open_engine(open_bundle(bundle), "onnxruntime", threads=1, device="cpu").run(feeds)
    assert np.isfinite(outputs["score"]).all()


def test_fp8_and_int8_are_never_in_one_graph(bundle: Path) -> None:
    types = {value.dtype for value in ir.load(bundle / "model.onnx").graph.initializers.values()}
    assert ir.DataType.FLOAT8E4M3FN in types
    assert ir.DataType.INT8 not in types


def test_a_recipe_made_for_int8_is_replayed_in_fp8_bit_for_bit(
    checkpoint: Checkpoint, recipe: Recipe, tmp_path: Path
) -> None:
    one, two = (
        export_checkpoint(
            checkpoint,
            tmp_path / name,
            family="grm",
            precision="fp8",
            target="tensorrt",
            quantisation=Quantisation(recipe=given),
        )
        for name, given in (("one", recipe), ("two", Recipe.from_yaml(recipe.to_yaml())))
    )
    assert open_bundle(one, verify=True).manifest.files == open_bundle(two, verify=True).manifest.files


def test_what_onnx_runtime_takes_for_a_layer_is_not_told_of_a_bundle_for_tensorrt(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["grm", "--checkpoint", str(checkpoint.folder), "--precision", "fp8", "--target", "tensorrt"]
    assert main([*argv, "--calibration-tokens", "500", "-o", str(tmp_path / "bundle")]) == 0
    assert "a layer takes" not in capsys.readouterr().err


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_fp8_for_another_target_is_refused_in_one_line(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    argv = ["grm", "--checkpoint", str(checkpoint.folder), "--precision", "fp8", "--target", target]
    assert main([*argv, "-o", str(tmp_path / "bundle")]) == 1
    told = capsys.readouterr().err
    assert "not fp8; fp8 runs on --target tensorrt" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "bundle").exists()
