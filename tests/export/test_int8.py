"""INT8 export: smoothing is exact in float, the recipe decides, the budget holds, replay is bit for bit."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import checkpoints
from rm_calibration.conversations import default_conversations
from rm_calibration.errors import CalibrationError
from rm_calibration.recipe import Embeddings, Recipe
from rm_export.build import build_model
from rm_export.bundle import Silent
from rm_export.calibrate import CalibrationOptions, apply_recipe, calibrate
from rm_export.checkpoint import Checkpoint, open_checkpoint
from rm_export.cli import main
from rm_export.demo import checkpoint_path
from rm_export.exporter import export_checkpoint
from rm_export.families import family
from rm_export.judges import Asked, Judges
from rm_export.lowering import lower, target_for
from rm_export.lowering.gemms import find_fold, find_gemms, gemm_groups
from rm_export.lowering.smooth import Smooth
from rm_export.options import Options
from rm_export.quantisation import Quantisation, Quantised
from rm_export.questions import Question
from rm_export.speed import LayerSpeed
from rm_export.stage_runner import StageRunner, run_stages
from rm_export.tensors import stored_bytes
from rm_runtime import load
from rm_runtime.bundle import open_bundle

EXAMPLES = default_conversations()[:24]
ROWS = [np.random.default_rng(seed).integers(5, 900, size=20 + seed) for seed in range(4)]


def graph_of(checkpoint: Checkpoint, name: str) -> ir.Model:
    return build_model(family(name).plan(checkpoint, Options()), "tiny")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(checkpoints.grm(tmp_path_factory.mktemp("int8") / "checkpoint"))


@pytest.fixture(scope="module")
def recipe(checkpoint: Checkpoint) -> Recipe:
    return calibrated(checkpoint, CalibrationOptions(threads=1, max_flip_rate=1.0))


def calibrated(checkpoint: Checkpoint, options: CalibrationOptions) -> Recipe:
    plan = family("grm").plan(checkpoint, Options())
    with tempfile.TemporaryDirectory() as folder:
        found, _ = calibrate(
            lambda: graph_of(checkpoint, "grm"),
            plan,
            "grm",
            checkpoint,
            EXAMPLES,
            options,
            Path(folder) / "work",
            Silent(),
        )
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("grm", {}),
        ("scalar", {"backbone": "qwen2"}),
        ("scalar", {"backbone": "gemma"}),
        ("grm", {"backbone": "gemma2"}),
    ],
)
def test_smoothing_by_powers_of_two_changes_no_bit_in_float(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    opened = open_checkpoint(getattr(checkpoints, name)(tmp_path / "checkpoint", **options))
    model, rng = graph_of(opened, name), np.random.default_rng(0)
    exponents = {}
    for activation, gemms in gemm_groups(model.graph).items():
        drawn = rng.integers(-3, 4, size=gemms[0].weight.const_value.shape.numpy()[0]).astype(np.int8)
        fold = find_fold(gemms[0].activation)
        exponents[activation] = drawn if fold is None or fold.tied is None else drawn[fold.tied]
    runner = StageRunner(threads=1)
    rows = [np.concatenate([row, [1040, 7, 1041, 8, 1042, 9]]) for row in ROWS]  # PairRM's prefixes; text to others
    before = run_stages(model, rows, runner)["score"]
    smoothed = Smooth(exponents)(graph_of(opened, name))
    assert smoothed.modified
    assert np.isfinite(before).all()
    np.testing.assert_allclose(run_stages(smoothed.model, rows, runner)["score"], before, rtol=1e-5, atol=1e-6)


def test_queries_keys_and_values_share_one_quantised_input_for_tensorrt(checkpoint: Checkpoint, recipe: Recipe) -> None:
    model = lower(apply_recipe(graph_of(checkpoint, "grm"), recipe), "int8", target_for("tensorrt", "int8"))
    readers: dict[str, int] = {}
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            (use,) = node.outputs[0].uses()
            readers[str(node.outputs[0].name)] = len(use.node.outputs[0].uses())
    assert readers["model.layers.0.self_attn.q_proj.input.int8"] == 3
    assert readers["model.layers.0.mlp.gate_proj.input.int8"] == 2


def test_every_int8_product_has_a_quantised_input_of_its_own_on_the_cpu(checkpoint: Checkpoint, recipe: Recipe) -> None:
    model = lower(apply_recipe(graph_of(checkpoint, "grm"), recipe), "int8", target_for("cpu", "int8"))
    quantisers = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    readers = [[use.node.op_type for use in node.outputs[0].uses()] for node in quantisers]
    assert len(quantisers) == len(recipe.gemms)
    assert readers == [["DequantizeLinear"]] * len(quantisers)


def test_onnx_runtime_runs_every_int8_product_in_integers(
    checkpoint: Checkpoint, recipe: Recipe, tmp_path: Path
) -> None:
    bundle = export_checkpoint(
        checkpoint, tmp_path / "bundle", precision="int8", quantisation=Quantisation(recipe=recipe, examples=EXAMPLES)
    )
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(bundle / "model.onnx"), options)
    optimised = onnx.load(tmp_path / "optimised.onnx", load_external_data=False)
    integer = [node for node in optimised.graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert len(integer) == sum(gemm.decision == "int8" for gemm in recipe.gemms.values())


def test_products_that_the_recipe_calls_int8_are_fed_by_int8_and_the_others_are_float(
    checkpoint: Checkpoint, recipe: Recipe
) -> None:
    kept = "model.layers.1.mlp.down_proj.weight"
    gemms = {**recipe.gemms, kept: dataclasses.replace(recipe.gemms[kept], decision="float", reason="a test")}
    model = apply_recipe(graph_of(checkpoint, "grm"), dataclasses.replace(recipe, gemms=gemms))
    int8 = {
        str(node.inputs[1].producer().inputs[0].name).removesuffix("_int8")  # type: ignore[union-attr]  # asserted
        for node in model.graph
        if node.op_type == "MatMul" and node.inputs[1].producer() is not None
    }
    assert int8 == {name for name in gemms if name != kept}
    assert all(not name.startswith("v_head") for name in gemms)


def test_zero_points_are_zero_and_scales_are_constants(checkpoint: Checkpoint, recipe: Recipe) -> None:
    model = apply_recipe(graph_of(checkpoint, "grm"), recipe)
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = node.inputs[1], node.inputs[2]
            assert scale is not None
            assert zero is not None
            assert (ir.convenience.get_const_tensor(scale).numpy() > 0).all()  # type: ignore[union-attr]  # constant
            assert not ir.convenience.get_const_tensor(zero).numpy().any()  # type: ignore[union-attr]  # constant


def test_calibration_is_deterministic_and_its_recipe_survives_yaml(checkpoint: Checkpoint, recipe: Recipe) -> None:
    again = calibrated(checkpoint, CalibrationOptions(threads=1, max_flip_rate=1.0))
    assert again.to_yaml() == recipe.to_yaml()
    assert Recipe.from_yaml(recipe.to_yaml()).digest() == recipe.digest()


def test_a_recipe_is_replayed_bit_for_bit(checkpoint: Checkpoint, recipe: Recipe, tmp_path: Path) -> None:
    one, two = (
        export_checkpoint(
            checkpoint, tmp_path / name, family="grm", precision="int8", quantisation=Quantisation(recipe=given)
        )
        for name, given in (("one", recipe), ("two", Recipe.from_yaml(recipe.to_yaml())))
    )
    files = [open_bundle(folder, verify=True).manifest.files for folder in (one, two)]
    assert files[0] == files[1]


def test_the_flip_budget_returns_the_worst_products_to_float_with_the_reason(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    options = CalibrationOptions(threads=1, max_flip_rate=0.0, observer="minmax", alphas=(0.0,))
    quantisation = Quantisation(examples=EXAMPLES, options=options)
    export_checkpoint(checkpoint, tmp_path / "bundle", family="grm", precision="int8", quantisation=quantisation)
    strict = Recipe.from_yaml((tmp_path / "bundle" / "recipe.yaml").read_bytes())
    floats = [gemm for gemm in strict.gemms.values() if gemm.decision == "float"]
    int8 = [gemm for gemm in strict.gemms.values() if gemm.decision == "int8"]
    assert floats
    assert strict.embeddings.decision == "float"
    assert all("flips" in gemm.reason and gemm.sensitivity is not None for gemm in floats)
    if int8:
        assert min(g.sensitivity or 0 for g in floats) >= max(g.sensitivity or 0 for g in int8)


def test_an_int8_bundle_carries_its_recipe_and_its_proof(checkpoint: Checkpoint, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    quantisation = Quantisation(examples=EXAMPLES, options=CalibrationOptions(threads=1))
    export_checkpoint(checkpoint, output, family="grm", precision="int8", quantisation=quantisation)
    manifest = open_bundle(output, verify=True).manifest
    assert manifest.recipe == "recipe.yaml"
    assert manifest.parity is not None
    assert manifest.parity["spearman"] > 0.98
    assert {"recipe.yaml", "parity.json", "parity.html"} <= set(manifest.files)
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert np.isfinite(load(output, threads=1).score([chat])[0].score)


def test_a_recipe_for_another_checkpoint_is_refused(checkpoint: Checkpoint, recipe: Recipe, tmp_path: Path) -> None:
    other = open_checkpoint(checkpoints.grm(tmp_path / "other", vhead_num_layers=2))
    with pytest.raises(CalibrationError, match="recipe was made for"):
        export_checkpoint(
            other, tmp_path / "bundle", family="grm", precision="int8", quantisation=Quantisation(recipe=recipe)
        )


def test_one_conversation_cannot_calibrate(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="at least two"):
        export_checkpoint(
            checkpoint,
            tmp_path / "bundle",
            family="grm",
            precision="int8",
            quantisation=Quantisation(examples=EXAMPLES[:1]),
        )


def test_an_empty_calibration_file_is_one_line_and_status_1(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    argv = ["grm", "--checkpoint", str(checkpoint.folder), "--int8", "--calibration", str(empty)]
    assert main([*argv, "-o", str(tmp_path / "bundle")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "bundle").exists()


def test_small_products_and_heads_are_never_quantised(checkpoint: Checkpoint) -> None:
    names = [gemm.name for gemm in find_gemms(graph_of(checkpoint, "grm").graph)]
    assert len(names) == 7 * int(checkpoint.config["num_hidden_layers"])


@pytest.mark.parametrize("precision", ["w8", "w4"])
def test_weight_only_precisions_keep_the_trained_demos_order_of_scores(tmp_path: Path, precision: str) -> None:
    output, quantisation = tmp_path / "bundle", Quantisation(examples=EXAMPLES)
    export_checkpoint(open_checkpoint(checkpoint_path()), output, precision=precision, quantisation=quantisation)
    manifest = open_bundle(output, verify=True).manifest
    assert manifest.parity is not None
    assert manifest.parity["spearman"] > 0.98


def test_four_bit_values_are_packed_two_a_byte_low_half_first() -> None:
    values = np.array([1, -1, 7, -8, 3], np.int8).astype(ml_dtypes.int4)
    assert bytes(stored_bytes(values)) == bytes([0xF1, 0x87, 0x03])


def test_the_user_is_told_whether_int8_is_faster_on_this_machine(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conversations = tmp_path / "conversations.jsonl"
    lines = [{"messages": list(one.messages), "responses": list(one.responses)} for one in EXAMPLES]
    conversations.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    argv = ["grm", "--checkpoint", str(checkpoint.folder), "--int8", "--calibration", str(conversations)]
    assert main([*argv, "-o", str(tmp_path / "bundle")]) == 0
    assert re.search(r"a layer takes [\d.]+ ms for \d+ ids, [\d.]+ ms in float32", capsys.readouterr().err)


def test_a_slower_int8_layer_is_said_to_be_slower() -> None:
    assert "NOT faster" in str(LayerSpeed(tokens=256, float_ms=1.0, quantised_ms=1.2))
    assert "NOT faster" not in str(LayerSpeed(tokens=256, float_ms=2.4, quantised_ms=1.2))


def test_the_recipe_says_whether_embedding_tables_are_int8(checkpoint: Checkpoint, recipe: Recipe) -> None:
    cpu = target_for("cpu", "int8")
    for embeddings, dtype in (("int8", ir.DataType.INT8), ("float", ir.DataType.FLOAT)):
        decided = dataclasses.replace(recipe, embeddings=Embeddings(embeddings, "a test"))
        model = Quantised("int8", decided, None).graph(graph_of(checkpoint, "grm"), cpu)
        tables = {str(node.inputs[0].name): node.inputs[0].dtype for node in model.graph if node.op_type == "Gather"}
        (name,) = [name for name in tables if "embed_tokens" in name and "scale" not in name]
        assert tables[name] == dtype


def test_a_pairwise_familys_budget_counts_pairs_of_rows_and_preferences() -> None:
    questions = tuple(Question(line, responses) for line in range(2) for responses in ((0, 1), (1, 0)))
    asked = Asked((), questions, (), pairwise=True)
    judges = Judges(asked, {"score": np.array([2.0, -2.0, 1.0, -1.0], np.float32)})
    assert judges.flip_rate({"score": np.array([2.0, -2.0, 1.0, -1.0], np.float32)}) == 0
    one_preference = judges.flip_rate({"score": np.array([2.0, -2.0, -0.1, 0.1], np.float32)})
    assert one_preference == 0.5
    between_rows = judges.flip_rate({"score": np.array([1.0, -1.0, 2.0, -2.0], np.float32)})
    assert between_rows == pytest.approx(2 / 6)
