"""The precision pass, proved on real family graphs."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

import checkpoints
from rm_export.build import build_model
from rm_export.checkpoint import open_checkpoint
from rm_export.errors import ExportError
from rm_export.exporter import export_checkpoint
from rm_export.families import family
from rm_export.graph.module import PRECISION_MARK
from rm_export.lowering import lower, target_for
from rm_export.lowering.precision import LowerPrecision
from rm_export.options import Options

LOW = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def lowered(folder: Path, precision: str) -> ir.Model:
    checkpoint = open_checkpoint(checkpoints.armorm(folder))
    model = build_model(family("armorm").plan(checkpoint, Options()), "tiny")
    LowerPrecision(LOW[precision])(model)
    return model


@pytest.mark.parametrize("precision", LOW)
def test_matrix_products_of_the_backbone_are_low_and_heads_are_float32(tmp_path: Path, precision: str) -> None:
    model = lowered(tmp_path, precision)
    products = [node for node in model.graph if node.op_type in ("MatMul", "Attention")]
    backbone = [node for node in products if (node.name or "").startswith("model/")]
    heads = [node for node in products if not (node.name or "").startswith("model/")]
    assert backbone
    assert heads
    assert {node.outputs[0].dtype for node in backbone} == {LOW[precision]}
    assert {node.outputs[0].dtype for node in heads} == {ir.DataType.FLOAT}


@pytest.mark.parametrize("op_type", ["RMSNormalization", "Softmax", "Cos", "Sin"])
def test_norms_softmax_and_rotary_tables_stay_float32(tmp_path: Path, op_type: str) -> None:
    nodes = [node for node in lowered(tmp_path, "fp16").graph if node.op_type == op_type]
    assert nodes
    assert {value.dtype for node in nodes for value in (*node.inputs, *node.outputs)} == {ir.DataType.FLOAT}


def test_the_residual_stream_stays_float32(tmp_path: Path) -> None:
    adds = [node for node in lowered(tmp_path, "fp16").graph if node.op_type == "Add" and "layers" in (node.name or "")]
    assert adds
    assert {node.outputs[0].dtype for node in adds} == {ir.DataType.FLOAT}


def test_every_weight_of_the_backbone_is_stored_low_once(tmp_path: Path) -> None:
    model = lower(lowered(tmp_path, "fp16"), "fp32", target_for("cpu", "fp32"))
    matrices = {
        name: value.dtype
        for name, value in model.graph.initializers.items()
        if name.startswith("model.layers") and value.shape is not None and value.shape.rank() == 2
    }
    assert matrices
    assert set(matrices.values()) == {ir.DataType.FLOAT16}


def test_a_graph_that_is_already_low_is_refused(tmp_path: Path) -> None:
    model = lowered(tmp_path, "fp16")
    with pytest.raises(ir.passes.PreconditionError):
        LowerPrecision(ir.DataType.FLOAT16)(model)


def test_the_marks_do_not_reach_the_bundle(tmp_path: Path) -> None:
    model = lower(lowered(tmp_path, "fp16"), "fp32", target_for("cpu", "fp32"))
    assert not any(PRECISION_MARK in node.metadata_props for node in model.graph)


def test_a_precision_that_a_target_cannot_run_is_refused_in_one_sentence() -> None:
    with pytest.raises(ExportError, match=r"target cpu runs [^;]*, not bf16; bf16 runs on --target cuda") as caught:
        target_for("cpu", "bf16")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("family_name", "options"),
    [
        ("armorm", {}),
        ("grm", {"backbone": "gemma2"}),
        ("pair-pm", {}),
        ("scalar", {"backbone": "qwen3"}),
        ("pairrm", {}),
    ],
)
def test_every_graph_passes_onnxs_own_checker(
    tmp_path: Path, family_name: str, options: dict[str, str], precision: str
) -> None:
    checkpoint = open_checkpoint(
        getattr(checkpoints, family_name.replace("-", "_"))(tmp_path / "checkpoint", **options)
    )
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", family=family_name, precision=precision, target="cuda")
    onnx.checker.check_model(bundle / "model.onnx", full_check=True)


@pytest.mark.parametrize("family_name", ["armorm", "grm", "scalar", "pairrm"])
def test_weights_carry_the_checkpoints_own_names(tmp_path: Path, family_name: str) -> None:
    checkpoint = open_checkpoint(getattr(checkpoints, family_name)(tmp_path / "checkpoint"))
    model = build_model(family(family_name).plan(checkpoint, Options()), "tiny")
    layers = [name for name in model.graph.initializers if ".layers." in name or ".layer." in name]
    assert len(layers) > 10
    assert [name for name in layers if name.endswith((".weight", ".bias")) and name not in checkpoint.tensors] == []
