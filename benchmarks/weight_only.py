"""How fast weight-only products are: `python benchmarks/weight_only.py [--threads 2]`.

One product, 512 x 4096 x 4096, in ONNX Runtime on the CPU: float32 MatMul, and MatMulNBits of 8 and 4 bits in blocks of
64 with float32 activations (accuracy_level 0 or 1) or int8 ones (4). Speeds are ratios to the float32 MatMul of the
same run; the fastest of some runs, taken in turn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rm_export.build import IR_VERSION, OPSET
from rm_export.lowering.matmul_nbits import MatMulNBits
from rm_export.lowering.quantise_weights import QuantiseWeights
from rm_export.tensors import Computed

TOKENS, SIZE, RUNS = 512, 4096, 7
FLOAT = ir.DataType.FLOAT


def product(weight: NDArray[np.float32]) -> ir.Model:
    """x [tokens, in] -> x @ weight [in, out], named as a layer's product."""
    name = "model.layers.0.mlp.up_proj.weight"
    tensor = Computed(lambda: weight, FLOAT, weight.shape, name)
    value = ir.Value(name=name, type=ir.TensorType(FLOAT), shape=ir.Shape(weight.shape), const_value=tensor)
    x = ir.Value(name="x", type=ir.TensorType(FLOAT), shape=ir.Shape([TOKENS, len(weight)]))
    node = ir.node("MatMul", [x, value], name="model/layers.0/mlp/up_proj/MatMul")
    y = node.outputs[0]
    y.name, y.dtype, y.shape = "y", FLOAT, ir.Shape([TOKENS, weight.shape[1]])
    graph = ir.Graph([x], [y], nodes=[node], initializers=[value], opset_imports={"": OPSET}, name="product")
    return ir.Model(graph, ir_version=IR_VERSION)


def session(model: ir.Model, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.data")
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.02, (SIZE, SIZE)).astype(np.float32)
    x = rng.normal(size=(TOKENS, SIZE)).astype(np.float32)
    sessions = {"float32 MatMul": session(product(weight), threads)}
    for bits in (8, 4):
        for level in (0, 1, 4):
            model = ir.passes.Sequential(QuantiseWeights(bits), MatMulNBits(level))(product(weight)).model
            sessions[f"MatMulNBits, {bits} bits, accuracy_level {level}"] = session(model, threads)
    best = dict.fromkeys(sessions, float("inf"))
    for _ in range(RUNS):
        for name, compiled in sessions.items():
            began = time.perf_counter()
            compiled.run(None, {"x": x})
            best[name] = min(best[name], time.perf_counter() - began)
    baseline = best["float32 MatMul"]
    print(
        f"{TOKENS} x {SIZE} x {SIZE}, {threads} threads; times the speed of float32 MatMul ({1000 * baseline:.0f} ms)"
    )
    for name, seconds in best.items():
        print(f"{name:38} {baseline / seconds:5.2f}")


if __name__ == "__main__":
    main()
