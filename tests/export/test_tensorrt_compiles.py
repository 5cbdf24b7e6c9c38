"""TensorRT-RTX compiles every family and backbone in every precision, without a GPU, and parses what we meant.

Tiny shapes. The integers' scales are those of random rows: what is compiled does not depend on their values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import checkpoints
import full_size
from graph_runs import observed_scales
from rm_calibration.formats import FORMATS
from rm_export.build import build_model
from rm_export.bundle import Silent
from rm_export.checkpoint import Checkpoint, open_checkpoint
from rm_export.engine import Compiled, EngineOptions, compile_graph
from rm_export.engine_profiles import Bucket, profiles_for
from rm_export.families import recognise
from rm_export.lowering import TARGETS, lower
from rm_export.lowering.gemms import find_gemms
from rm_export.lowering.quantise import Quantise
from rm_export.lowering.quantise_weights import QuantiseWeights, block_size
from rm_export.options import Options

TARGET = TARGETS["tensorrt"]
FAMILIES = ("armorm", "grm", "pairrm", "pair_pm", "dpa_rm")
BACKBONES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
LAYERS = 2
"""Enough for what crosses from one layer to the next."""

CASES = [(name, None, precision) for name in FAMILIES for precision in ("fp16", "int8")]
CASES += [("scalar", name, precision) for name in BACKBONES for precision in ("fp16", "bf16", "int8", "w8", "fp8")]
CASES += [("pairrm", None, precision) for precision in ("bf16", "w8", "w4", "fp8")]
ROLES = [(*case, role) for case in CASES for role in (("plain",) if case[0] == "pairrm" else ("plain", "prefix"))]
"""Attention in both directions has no prefix to share."""


def lowered(checkpoint: Checkpoint, precision: str, shared_prefix: bool) -> tuple[ir.Model, frozenset[str]]:
    """The graph as an export for TensorRT writes it, and the names of its integer products."""
    plan = recognise(checkpoint).plan

    def build(shared_prefix: bool = shared_prefix) -> ir.Model:
        return build_model(plan(checkpoint, Options()), "tiny", shared_prefix)

    model, gemms = build(), find_gemms(build().graph)
    weight_only = precision in ("w8", "w4")
    quantised = frozenset(gemm.name for gemm in gemms if not weight_only or block_size(gemm) is not None)
    if precision in FORMATS:
        numbers = FORMATS[precision]
        scales = observed_scales(build(shared_prefix=False), numbers=numbers)
        model = Quantise(scales, quantised, numbers)(model).model
    elif weight_only:
        model = QuantiseWeights(int(precision[1:]), blocks=precision == "w4")(model).model
    return lower(model, precision, TARGET), quantised


def compiled(checkpoint: Checkpoint, precision: str, role: str, folder: Path) -> tuple[Compiled, frozenset[str]]:
    model, quantised = lowered(checkpoint, precision, shared_prefix=role == "prefix")
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data")
    profiles = profiles_for(role, [Bucket(4, 128)], max_length=256)
    options = EngineOptions(timing_cache=folder / "timing.cache")
    return compile_graph("tensorrt_rtx", folder / "model.onnx", profiles, options, Silent()), quantised


@pytest.mark.parametrize(("name", "backbone", "precision", "role"), ROLES)
def test_tensorrt_compiles_it_and_parses_what_we_meant(
    tmp_path: Path, name: str, backbone: str | None, precision: str, role: str
) -> None:
    options: dict[str, Any] = {"num_hidden_layers": LAYERS} | ({"backbone": backbone} if backbone else {})
    checkpoint = open_checkpoint(getattr(checkpoints, name)(tmp_path / "checkpoint", **options))
    result, quantised = compiled(checkpoint, precision, role, tmp_path)
    assert memoryview(result.plan).nbytes > 0
    network = Network(result.layers["parsed"])
    expected = {"int8": ("INT8", "INT8"), "fp8": ("FP8", "FP8"), "w8": (None, "INT8"), "w4": (None, "INT4")}
    products = {module(layer["name"]): layer for layer in network.of_type("MATRIX_MULTIPLY")}
    for weight in quantised:
        layer = products.pop(weight.removesuffix(".weight"))
        assert network.integers(layer) == expected.get(precision, (None, None)), layer["name"]
    assert products, "the heads' own products"
    for layer in products.values():
        assert network.integers(layer) == (None, None), layer["name"]
    for layer in network.float32_layers():
        assert network.types(layer) <= {"FLOAT"}, layer["name"]


class Network:
    """Layers as TensorRT parsed them."""

    def __init__(self, layers: list[Mapping[str, Any]]) -> None:
        self.layers = layers
        self._producer = {output["name"]: layer for layer in layers for output in layer["outputs"]}

    def of_type(self, kind: str) -> list[Mapping[str, Any]]:
        return [layer for layer in self.layers if layer["type"] == kind]

    def float32_layers(self) -> list[Mapping[str, Any]]:
        """Norms, softmax of its own, and heads: what stands outside the backbone's layers."""
        marked = [
            layer
            for layer in self.layers
            if "norm" in layer["name"].lower() and layer["type"] not in ("CONSTANT", "SHAPE", "CAST")
        ]
        heads = [
            layer
            for layer in self.of_type("MATRIX_MULTIPLY")
            if not layer["name"].startswith(("model/", "pretrained_"))
        ]
        return [*marked, *self.of_type("SOFTMAX"), *heads]

    def types(self, layer: Mapping[str, Any]) -> set[str]:
        """The float types that a layer reads and gives."""
        tensors = [tensor for tensor in (*layer["inputs"], *layer["outputs"]) if tensor is not None]
        return {tensor["dtype"] for tensor in tensors} & {"FLOAT", "HALF", "BF16"}

    def integers(self, product: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """The integer (or float8) type that each side of a product is dequantised from, None for a float side."""
        left, right = (self._dequantised_from(tensor["name"]) for tensor in product["inputs"])
        return left, right

    def _dequantised_from(self, name: str) -> str | None:
        layer = self._producer.get(name)
        while layer is not None and layer["type"] == "SHUFFLE":  # how the parser gives a weight its batch dimension
            layer = self._producer.get(layer["inputs"][0]["name"])
        return layer["inputs"][0]["dtype"] if layer is not None and layer["type"] == "DEQUANTIZE" else None


def module(node: str) -> str:
    """ "model/layers.0/mlp/up_proj/MatMul_node_9" -> "model.layers.0.mlp.up_proj"."""
    return ".".join(node.split("/")[:-1])


@pytest.mark.parametrize("model", ["Llama-3-8B", "DeBERTa-v3-large"])
def test_a_layer_of_full_width_compiles(tmp_path: Path, model: str) -> None:
    if model == "Llama-3-8B":
        folder = full_size.llama(tmp_path / "checkpoint", "8B", num_hidden_layers=1)
    else:
        folder = full_size.pairrm_layers(tmp_path / "checkpoint", layers=1)
    result, _ = compiled(open_checkpoint(folder), "fp16", "plain", tmp_path)
    # the weights are in it, two bytes each
    assert memoryview(result.plan).nbytes > 0.9 * (tmp_path / "model.onnx.data").stat().st_size
