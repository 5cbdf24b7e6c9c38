"""Embedding tables as int8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import checkpoints
from graph_runs import run_graph
from rm_calibration.errors import CalibrationError
from rm_export.build import IR_VERSION, OPSET, build_model
from rm_export.checkpoint import open_checkpoint
from rm_export.errors import ExportError
from rm_export.families import family
from rm_export.lowering import TARGETS, lower
from rm_export.lowering.embeddings import QuantiseEmbeddings
from rm_export.options import Options
from rm_export.tensors import StreamedTensor

FLOAT = ir.DataType.FLOAT


class Blocks(StreamedTensor):
    """A table that is only ever given in blocks."""

    def __init__(self, table: NDArray[np.float32]) -> None:
        super().__init__(FLOAT, table.shape, "table")
        self._table = table

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        yield from (self._table[start : start + 8] for start in range(0, len(self._table), 8))

    def numpy(self) -> NDArray[np.float32]:
        raise AssertionError("the whole table was asked for")


def lookup(table: NDArray[np.float32]) -> ir.Model:
    """ids [batch] -> rows [batch, size]."""
    value = ir.Value(name="table", type=ir.TensorType(FLOAT), shape=ir.Shape(table.shape), const_value=Blocks(table))
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch"]))
    node = ir.node("Gather", [value, ids], {"axis": 0}, name="embed_tokens/Gather")
    rows = node.outputs[0]
    rows.name, rows.dtype, rows.shape = "rows", FLOAT, ir.Shape(["batch", table.shape[1]])
    graph = ir.Graph([ids], [rows], nodes=[node], initializers=[value], opset_imports={"": OPSET}, name="lookup")
    return ir.Model(graph, ir_version=IR_VERSION)


def looked_up(table: NDArray[np.float32]) -> NDArray[np.float32]:
    model = QuantiseEmbeddings()(lookup(table)).model
    for value in model.graph.initializers.values():
        value.const_value = ir.Tensor(np.concatenate(list(value.const_value.blocks())), name=value.name)
    ((rows,),) = run_graph(model, [{"ids": np.arange(len(table))}], ["rows"])
    return rows


def table_of(rows: int) -> NDArray[np.float32]:
    """Rows of very different sizes, the first one all zeros, as padding is."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(rows, 48)) * 10.0 ** rng.uniform(-3, 2, (rows, 1))
    table[0] = 0
    return table.astype(np.float32)


def test_a_row_is_off_by_half_a_127th_of_its_largest_value_at_most_and_never_read_whole() -> None:
    table = table_of(100)
    rows = looked_up(table)
    assert (np.abs(rows - table).max(axis=1) <= np.abs(table).max(axis=1) / 254 * 1.001).all()
    assert (rows != table).any()


def test_a_row_that_is_not_finite_fails_the_export() -> None:
    table = table_of(20)
    table[9, 3] = np.nan
    with pytest.raises(CalibrationError, match="table"):
        looked_up(table)


@pytest.mark.parametrize("name", ["armorm", "grm", "pair_pm", "scalar", "pairrm"])
def test_the_word_table_alone_becomes_int8(tmp_path: Path, name: str) -> None:
    checkpoint = open_checkpoint(getattr(checkpoints, name)(tmp_path / "checkpoint"))
    model = build_model(family(name.replace("_", "-")).plan(checkpoint, Options()), "tiny")
    before = {str(value): tensor.dtype for value, tensor in model.graph.initializers.items()}
    after = lower(model, "fp32", TARGETS["cpu"], int8_tables=True).graph.initializers
    (gone,) = before.keys() - after.keys()
    assert gone.endswith(("embeddings.weight", "embed_tokens.weight"))
    assert {value: after[value].dtype for value in before.keys() - {gone}} == {
        value: dtype for value, dtype in before.items() if value != gone
    }


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_rows_scale_stays_float32_in_a_low_precision(tmp_path: Path, precision: str) -> None:
    checkpoint = open_checkpoint(checkpoints.grm(tmp_path / "checkpoint"))
    model = build_model(family("grm").plan(checkpoint, Options()), "tiny")
    graph = lower(model, precision, TARGETS["cuda"], int8_tables=True).graph
    assert graph.initializers["model.embed_tokens.weight_int8"].dtype == ir.DataType.INT8
    assert graph.initializers["model.embed_tokens.weight_scale"].dtype == FLOAT


def test_a_target_without_integer_lookups_refuses_in_one_sentence() -> None:
    with pytest.raises(ExportError, match="tensorrt has no int8 embedding tables") as caught:
        lower(lookup(table_of(8)), "int8", TARGETS["tensorrt"], int8_tables=True)
    assert "\n" not in str(caught.value)
