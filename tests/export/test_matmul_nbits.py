"""Weight-only quantisation: standard blocks, and the product that ONNX Runtime and OpenVINO have for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import checkpoints
from graph_runs import run_graph, scores
from rm_calibration.errors import CalibrationError
from rm_calibration.weights import dequantise
from rm_export.build import IR_VERSION, OPSET, build_model
from rm_export.checkpoint import open_checkpoint
from rm_export.families import family
from rm_export.lowering import TARGETS, lower, matmul_nbits
from rm_export.lowering.gemms import find_gemms
from rm_export.lowering.matmul_nbits import DOMAIN, MatMulNBits, pack, packed_bytes, packed_scales, unpack
from rm_export.lowering.packing import BlockPacking
from rm_export.lowering.quantise_weights import QuantiseWeights
from rm_export.lowering.scales import RoundScales
from rm_export.options import Options
from rm_export.tensors import Computed, StreamedTensor, transpose

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
FLOAT16_TOLERANCE = 1e-2
"""Of the scores' standard deviation, as in test_parity.py; with the same integers and scales on both sides."""

FLOAT32_TOLERANCE = 1e-4

Build = Callable[[], ir.Model]


@pytest.fixture(scope="module", params=["grm", "pairrm"])
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("weights") / "checkpoint"
    checkpoint = open_checkpoint(getattr(checkpoints, request.param)(folder))
    return lambda: build_model(family(request.param).plan(checkpoint, Options()), "tiny")


def weights_only(build: Build, bits: int) -> ir.Model:
    return QuantiseWeights(bits)(build()).model


def matrix(inputs: int, outputs: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(inputs, outputs)).astype(np.float32)


def tensor_of(weight: NDArray[np.float32], name: str = "weight") -> StreamedTensor:
    return Computed(lambda: weight, FLOAT, weight.shape, name)


def product(weight: NDArray[np.float32]) -> ir.Model:
    """x [batch, in] -> y = x @ weight, named as a layer's product."""
    tensor = tensor_of(weight, "model.layers.0.mlp.up_proj.weight")
    value = ir.Value(name=tensor.name, type=ir.TensorType(FLOAT), shape=ir.Shape(weight.shape), const_value=tensor)
    x = ir.Value(name="x", type=ir.TensorType(FLOAT), shape=ir.Shape(["batch", len(weight)]))
    node = ir.node("MatMul", [x, value], name="model/layers.0/mlp/up_proj/MatMul")
    y = node.outputs[0]
    y.name, y.dtype, y.shape = "y", FLOAT, ir.Shape(["batch", weight.shape[1]])
    graph = ir.Graph([x], [y], nodes=[node], initializers=[value], opset_imports={"": OPSET}, name="product")
    return ir.Model(graph, ir_version=IR_VERSION)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(64, 3), (100, 5), (17, 1)])
def test_what_is_packed_is_what_is_read(bits: int, shape: tuple[int, int]) -> None:
    levels = 2 ** (bits - 1) - 1
    values = np.random.default_rng(0).integers(-levels, levels + 1, shape).astype(np.int8)
    packed = pack(values, bits, 32)
    assert packed.shape == (shape[1], -(-shape[0] // 32), 32 * bits // 8)
    np.testing.assert_array_equal(unpack(packed, bits, shape[0]), values)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("inputs", [48, 64, 192])
def test_the_engine_multiplies_by_the_dequantised_weight(bits: int, inputs: int) -> None:
    weight, x = matrix(inputs, 24), matrix(5, inputs)
    model = MatMulNBits()(QuantiseWeights(bits)(product(weight)).model).model
    packing = BlockPacking(tensor_of(weight), bits, np.gcd(inputs, 64))
    expected = x @ dequantise(packing.quantised(weight), packing.block_size)
    ((actual,),) = run_graph(model, [{"x": x}], ["y"])
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_both_forms_of_weight_only_products_give_the_same_scores(build: Build, bits: int) -> None:
    """The standard one runs as written: optimised, ONNX Runtime would round its activations to int8."""
    standard = scores(lower(weights_only(build, bits), "fp32", TARGETS["cpu"]), optimised=False)
    contrib = scores(lower(weights_only(build, bits), f"w{bits}", TARGETS["cpu"]))
    assert np.abs(contrib - standard).max() <= FLOAT32_TOLERANCE * standard.std()


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
@pytest.mark.parametrize("bits", [8, 4])
def test_float16_around_the_same_integers_gives_the_scores_of_float32(build: Build, bits: int, target: str) -> None:
    rounded = RoundScales(FLOAT16)(weights_only(build, bits)).model
    expected = scores(lower(rounded, f"w{bits}", TARGETS["cpu"]))
    actual = scores(lower(weights_only(build, bits), f"w{bits}", TARGETS[target]), optimised=target != "tensorrt")
    assert np.abs(actual - expected).max() <= FLOAT16_TOLERANCE * expected.std()


@pytest.mark.parametrize("target", TARGETS)
def test_only_targets_that_have_the_product_get_it(build: Build, target: str, tmp_path: Path) -> None:
    model = lower(weights_only(build, 4), "w4", TARGETS[target])
    found = [node for node in model.graph if node.domain == DOMAIN]
    widened = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    count = len(list(find_gemms(build().graph)))
    assert (len(found), len(widened)) == ((count, 0) if TARGETS[target].matmul_nbits else (0, count))
    assert all(node.attributes["accuracy_level"].as_int() == 1 for node in found)
    ir.save(model, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


@pytest.mark.parametrize(("inputs", "block"), [(128, 64), (96, 32), (48, 16), (40, None)])
def test_blocks_are_whole_or_the_product_stays_float(inputs: int, block: int | None) -> None:
    model = QuantiseWeights(8)(product(matrix(inputs, 32))).model
    blocks = [node.attributes["block_size"].as_int() for node in model.graph if node.op_type == "DequantizeLinear"]
    assert blocks == ([] if block is None else [block])


def test_halves_packed_in_the_wrong_order_fail_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(values: NDArray[np.int8], bits: int, block_size: int) -> NDArray[np.uint8]:
        packed = pack(values, bits, block_size)
        return (packed >> 4) | (packed << 4)

    monkeypatch.setattr(matmul_nbits, "pack", swapped)
    with pytest.raises(CalibrationError, match="packed wrongly"):
        packed_bytes(BlockPacking(tensor_of(matrix(64, 16)), 4, 64), "weight").numpy()


class Blocks(StreamedTensor):
    """A checkpoint's [out, in] tensor that is only ever given in blocks."""

    def __init__(self, weight: NDArray[np.float32]) -> None:
        super().__init__(FLOAT, weight.shape, "weight")
        self._weight = weight

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        yield from (self._weight[start : start + 8] for start in range(0, len(self._weight), 8))

    def numpy(self) -> NDArray[np.float32]:
        raise AssertionError("the whole weight was asked for")


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_is_packed_a_block_at_a_time_and_gives_the_bytes_of_the_whole(bits: int) -> None:
    weight = matrix(128, 40)
    streamed, whole = (BlockPacking(s, bits, 64) for s in (transpose(Blocks(weight.T)), tensor_of(weight)))
    np.testing.assert_array_equal(packed_bytes(streamed, "b").numpy(), packed_bytes(whole, "b").numpy())
    np.testing.assert_array_equal(
        packed_scales(streamed, FLOAT16, "s").numpy(), packed_scales(whole, FLOAT16, "s").numpy()
    )
