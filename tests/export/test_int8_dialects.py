"""int8 with float16 or bfloat16 around it, as the cuda and tensorrt targets run it.

What is compared with what. Once a float16 rounding carries an activation over the edge between two integers, it counts
as a whole step: casting the float32 graph's quantised activations to float16 and back alone moves a tiny checkpoint's
scores by as much as int8 itself does. So the dialects are compared where they must agree: to 1e-2 standard deviations
(float16's tolerance, test_parity.py) with the same integer weights and the activations left unrounded; in their
distance from the float32 scores with everything in integers; and in the decisions of a trained model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

import checkpoints
from graph_runs import ROWS, observed_scales, scores, without_activation_rounding
from rm_calibration.comparison import compare_scores
from rm_calibration.weights import quantise_with
from rm_export.build import build_model
from rm_export.checkpoint import Checkpoint, open_checkpoint
from rm_export.demo import checkpoint_path
from rm_export.demo.preferences import comparisons
from rm_export.errors import ExportError
from rm_export.families import family
from rm_export.lowering import TARGETS, lower
from rm_export.lowering.gemms import find_gemms
from rm_export.lowering.packing import ChannelPacking, PackedScales, PackedValues, rounded_up
from rm_export.lowering.precision import LowerPrecision
from rm_export.lowering.quantise import Quantise
from rm_export.lowering.scales import RoundScales
from rm_export.options import Options
from rm_export.stages import lookups, split_stages
from rm_export.tensors import Computed, to_float32
from rm_runtime.prompts import ChatPrompter

LOW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
FLOAT16_TOLERANCE = 1e-2

Build = Callable[[], ir.Model]


def build_of(checkpoint: Checkpoint, name: str) -> Build:
    return lambda: build_model(family(name).plan(checkpoint, Options()), "tiny")


def int8(build: Build, rows: Sequence[NDArray[np.int64]] = ROWS) -> ir.Model:
    model, scales = build(), observed_scales(build(), rows)
    return Quantise(scales, frozenset(gemm.name for gemm in find_gemms(model.graph)))(model).model


@pytest.fixture(scope="module", params=["grm", "pairrm"])
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("dialects") / "checkpoint"
    return build_of(open_checkpoint(getattr(checkpoints, request.param)(folder)), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return build_of(open_checkpoint(checkpoints.grm(tmp_path_factory.mktemp("llama") / "checkpoint")), "grm")


def around(model: ir.Model, dtype: ir.DataType) -> ir.Model:
    return lower(model, "int8", replace(TARGETS["tensorrt"], around_integers=dtype))


def products(model: ir.Model) -> list[ir.Node]:
    """The products of the layers that read two DequantizeLinear."""
    return [
        node
        for node in model.graph
        if node.op_type == "MatMul"
        and all(v.producer() and v.producer().op_type == "DequantizeLinear" for v in node.inputs)
    ]


@pytest.mark.parametrize("dtype", LOW)
def test_products_are_low_between_integers_and_norms_and_heads_are_float32(llama: Build, dtype: ir.DataType) -> None:
    model = around(int8(llama), dtype)
    assert len(products(model)) == len(list(find_gemms(llama().graph)))
    assert {value.dtype for node in products(model) for value in (*node.inputs, *node.outputs)} == {dtype}
    kept = [n for n in model.graph if n.op_type == "RMSNormalization" or (n.name or "").startswith("v_head")]
    assert kept
    floats = {v.dtype for node in kept for v in (*node.inputs, *node.outputs) if v.dtype.is_floating_point()}
    assert floats == {ir.DataType.FLOAT}


@pytest.mark.parametrize("dtype", LOW)
def test_a_scale_has_the_type_of_the_float_side_of_its_node(build: Build, dtype: ir.DataType) -> None:
    model = around(int8(build), dtype)
    sides = {"QuantizeLinear": lambda node: node.inputs[0], "DequantizeLinear": lambda node: node.outputs[0]}
    nodes = [node for node in model.graph if node.op_type in sides]
    assert nodes
    assert all(node.inputs[1].dtype == sides[node.op_type](node).dtype for node in nodes)


def test_the_norms_float32_output_is_quantised_as_it_is(llama: Build) -> None:
    model = around(int8(llama), ir.DataType.FLOAT16)
    types = {
        node.inputs[0].producer().op_type: node.inputs[0].dtype
        for node in model.graph
        if node.op_type == "QuantizeLinear"
    }
    assert types["RMSNormalization"] == ir.DataType.FLOAT
    assert types["Attention"] == ir.DataType.FLOAT16


@pytest.mark.parametrize("dtype", LOW)
def test_both_ends_of_an_activation_use_one_number(build: Build, dtype: ir.DataType) -> None:
    ends = [
        [to_float32(one.inputs[1].const_value.numpy()) for one in (node, use.node)]
        for node in around(int8(build), dtype).graph
        if node.op_type == "QuantizeLinear"
        for use in node.outputs[0].uses()
    ]
    assert ends
    assert all(quantised == dequantised for quantised, dequantised in ends)


def test_queries_keys_and_values_still_share_one_quantised_input(llama: Build) -> None:
    model = around(int8(llama), ir.DataType.FLOAT16)
    shared = {}
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            (use,) = node.outputs[0].uses()
            shared[node.outputs[0].name] = len(use.node.outputs[0].uses())
    assert shared["model.layers.0.self_attn.q_proj.input.int8"] == 3
    assert shared["model.layers.0.mlp.gate_proj.input.int8"] == 2


@pytest.mark.parametrize("dtype", LOW)
def test_a_weights_integers_are_made_for_the_scale_they_are_stored_with(llama: Build, dtype: ir.DataType) -> None:
    floats = {gemm.name: to_float32(gemm.weight.const_value.numpy()) for gemm in find_gemms(llama().graph)}
    wide = {node.name: node.inputs[1].producer() for node in products(lower(int8(llama), "int8", TARGETS["cpu"]))}
    for node in products(around(int8(llama), dtype)):
        widen = node.inputs[1].producer()
        values, scales = (value.const_value.numpy() for value in widen.inputs[:2])
        name = widen.inputs[0].name.removesuffix("_int8")
        np.testing.assert_array_equal(values, quantise_with(floats[name], to_float32(scales)).values)
        assert (to_float32(scales) >= wide[node.name].inputs[1].const_value.numpy()).all()  # nothing newly clips


def test_with_the_same_integer_weights_float16_gives_the_scores_of_float32(build: Build) -> None:
    rounded = RoundScales(ir.DataType.FLOAT16)(int8(build)).model
    graphs = (lower(rounded, "int8", TARGETS["cpu"]), lower(int8(build), "int8", TARGETS["tensorrt"]))
    expected, actual = (scores(without_activation_rounding(graph), optimised=False) for graph in graphs)
    assert np.abs(actual - expected).max() <= FLOAT16_TOLERANCE * expected.std()


def root_mean_square(error: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(error**2)))


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_float16_around_int8_is_no_further_from_float32_than_int8_itself(build: Build, target: str) -> None:
    """A third more is allowed: both are samples of one rounding noise, over 60 rows."""
    expected = scores(build())
    cpu, low = (scores(lower(int8(build), "int8", TARGETS[name])) for name in ("cpu", target))
    assert root_mean_square(low - expected) <= 4 / 3 * root_mean_square(cpu - expected)
    assert root_mean_square(low - expected) < expected.std() / 3


def test_no_clear_preference_of_the_trained_demo_differs_between_the_dialects() -> None:
    checkpoint = open_checkpoint(checkpoint_path())
    plan, demo = family("armorm").plan(checkpoint, Options()), build_of(checkpoint, "armorm")
    chats = [one.chat(answer) for one in comparisons(25, seed=1, split="held_out") for answer in one.answers]
    prompts = ChatPrompter(plan.prompt, Tokenizer.from_str(plan.tokenizer_json)).encode(chats)
    rows = [np.asarray(prompt.ids, np.int64) for prompt in prompts]
    cpu, low = (scores(lower(int8(demo, rows), "int8", TARGETS[name]), rows) for name in ("cpu", "tensorrt"))
    agreement = compare_scores(cpu, low)
    assert agreement.order.clear_pairs > 1000
    assert agreement.order.clear_flips == 0


@pytest.mark.parametrize("target", TARGETS)
def test_in_every_dialect_a_layer_reads_only_what_came_before_it(build: Build, target: str) -> None:
    model = lower(int8(build), "int8", TARGETS[target])
    known = {*model.graph.inputs, *(node.outputs[0] for node in lookups(model.graph))}
    stages = split_stages(model)
    for stage in stages:
        assert set(stage.inputs) <= known, f"{stage.name} reads {set(stage.inputs) - known} before it is there"
        known |= set(stage.outputs)
    assert len(stages) > 3


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", LOW)
def test_every_dialect_passes_onnxs_own_checker(build: Build, target: str, dtype: ir.DataType, tmp_path: Path) -> None:
    model = lower(int8(build), "int8", replace(TARGETS[target], around_integers=dtype))
    ir.save(model, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


def test_scales_that_the_low_type_cannot_hold_are_refused(llama: Build) -> None:
    with pytest.raises(ir.passes.PreconditionError, match="scale"):
        LowerPrecision(ir.DataType.FLOAT16)(int8(llama))


@pytest.mark.parametrize("dtype", LOW)
def test_a_scale_becomes_the_next_number_of_the_low_type_and_never_0(dtype: ir.DataType) -> None:
    scales = np.float32(2.0) ** np.random.default_rng(0).uniform(-40, 8, 10_000).astype(np.float32)
    up = rounded_up(scales, dtype, "scales")
    stored = up.astype(dtype.numpy())
    below = (stored.view(np.uint16) - 1).view(stored.dtype)
    assert (up >= scales).all()
    assert (to_float32(stored) == up).all()
    assert (to_float32(below) < scales).all()


def test_a_scale_beyond_float16_is_one_line_that_names_the_tensor() -> None:
    with pytest.raises(ExportError, match=r"'some\.input' reaches 127000, beyond f16; .*--bf16") as caught:
        rounded_up(np.full((), 1000, np.float32), ir.DataType.FLOAT16, "some.input")
    assert "\n" not in str(caught.value)


def test_channels_that_float16_loses_become_zeros_and_do_not_fail_the_export() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32) * np.float32([1, 1e-9, 0])
    source = Computed(lambda: weight, ir.DataType.FLOAT, weight.shape, "weight")
    packing = ChannelPacking(source, ir.DataType.FLOAT16)
    values = PackedValues(packing, "weight").numpy()
    assert values[:, 0].any()
    assert not values[:, 1:].any()
    assert (PackedScales(packing, "weight").numpy() > 0).all()


def test_bfloat16_scales_are_exact_in_bfloat16(llama: Build) -> None:
    for node in products(around(int8(llama), ir.DataType.BFLOAT16)):
        scales = node.inputs[1].producer().inputs[1].const_value
        assert scales.numpy().dtype == ml_dtypes.bfloat16
