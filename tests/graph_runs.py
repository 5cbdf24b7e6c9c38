"""Graphs run in ONNX Runtime without a bundle around them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from rm_calibration.formats import INT8, NumberFormat
from rm_export.lowering.gemms import gemm_groups

ROWS = [
    np.concatenate([np.random.default_rng(seed).integers(5, 900, size=20 + seed), [1040, 7, 1041, 8, 1042, 9]])
    for seed in range(60)
]
"""Ids for any tiny checkpoint: PairRM's prefixes are at their end, which are ordinary tokens to the others."""


def run_graph(
    model: ir.Model, feeds: Sequence[Mapping[str, NDArray[Any]]], outputs: Sequence[str], optimised: bool = True
) -> list[list[NDArray[Any]]]:
    """The named outputs for each feed. optimised=False runs every operator as it is written."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.onnx.data")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [session.run(list(outputs), dict(feed)) for feed in feeds]


def scores(model: ir.Model, rows: Sequence[NDArray[np.int64]] = ROWS, optimised: bool = True) -> NDArray[np.float64]:
    """The graph's score of each row of ids."""
    results = run_graph(model, [_feed(row) for row in rows], ["score"], optimised)
    return np.array([score[0] for (score,) in results], np.float64)


def observed_scales(
    model: ir.Model, rows: Sequence[NDArray[np.int64]] = ROWS, numbers: NumberFormat = INT8
) -> dict[str, float]:
    """Activation name -> scale that takes a float graph's largest value there to the format's; changes the graph."""
    activations = {name: gemms[0].activation for name, gemms in gemm_groups(model.graph).items()}
    model.graph.outputs.extend(value for value in activations.values() if value not in model.graph.outputs)
    results = run_graph(model, [_feed(row) for row in rows], [str(value.name) for value in activations.values()])
    return {
        name: max(float(np.abs(result[place]).max()) for result in results) / numbers.largest
        for place, name in enumerate(activations)
    }


def without_activation_rounding(model: ir.Model) -> ir.Model:
    """The graph with every QuantizeLinear and DequantizeLinear of an activation taken out."""
    for node in list(model.graph):
        if node.op_type != "QuantizeLinear":
            continue
        source, (use,) = node.inputs[0], node.outputs[0].uses()
        read = use.node.outputs[0]
        if source.dtype != read.dtype:
            narrow = ir.node("Cast", [source], {"to": read.dtype})
            narrow.outputs[0].dtype = read.dtype
            model.graph.insert_before(node, narrow)
            source = narrow.outputs[0]
        read.replace_all_uses_with(source)
    return ir.passes.common.RemoveUnusedNodesPass()(model).model


def _feed(row: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    return {"input_ids": row[None, :], "attention_mask": np.ones((1, len(row)), np.int64)}
