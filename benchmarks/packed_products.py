"""Do products that read one activation gain from being one? `python benchmarks/packed_products.py`, a minute.

q, k, v and gate, up of Llama-3.2-1B's shape in int8 (benchmarks/full_size.py, random weights): as the exporter writes
them, and with their weights side by side in one product and a Split behind it. One thread, CPU time, fastest round.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

INPUTS = 2048
GROUPS = {"q, k, v": (2048, 512, 512), "gate, up": (8192, 8192)}
TOKENS = (1, 128, 2048)
ROUNDS = 5
ROUND_SECONDS = 0.2

Run = Callable[[NDArray[np.float32]], object]


def graph(columns: Sequence[int], packed: bool) -> onnx.ModelProto:
    """x [1, tokens, INPUTS] -> one output a product; packed: one product of all columns, split."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    constants = [numpy_helper.from_array(np.float32(0.02), "step"), numpy_helper.from_array(np.int8(0), "zero")]
    products = [sum(columns)] if packed else list(columns)
    for place, width in enumerate(products):
        name = f"w{place}"
        constants += [
            numpy_helper.from_array(rng.integers(-127, 128, (INPUTS, width), np.int8), f"{name}_int8"),
            numpy_helper.from_array(np.full(width, 1e-3, np.float32), f"{name}_scale"),
            numpy_helper.from_array(np.zeros(width, np.int8), f"{name}_zero"),
        ]
        nodes += [
            # a quantiser each, told apart by an axis that means nothing: see lowering/own_quantisers.py
            helper.make_node("QuantizeLinear", ["x", "step", "zero"], [f"q{place}"], axis=place),
            helper.make_node("DequantizeLinear", [f"q{place}", "step", "zero"], [f"x{place}"], axis=place),
            helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale", f"{name}_zero"], [name], axis=1),
            helper.make_node("MatMul", [f"x{place}", name], [f"y{place}"]),
        ]
    outputs = [f"y{place}" for place in range(len(columns))]
    if packed:
        nodes[-1].output[0] = "y"
        constants.append(numpy_helper.from_array(np.array(columns, np.int64), "columns"))
        nodes.append(helper.make_node("Split", ["y", "columns"], outputs, axis=2))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    start = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "tokens", INPUTS])
    made = helper.make_graph(nodes, "products", [start], ends, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def on_onnxruntime(path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})


def on_openvino(path: Path) -> Run:
    properties = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": openvino.Type.f32}
    compiled = openvino.Core().compile_model(str(path), "CPU", properties)
    return lambda x: compiled({"x": x})


def milliseconds(runs: Sequence[Run], x: NDArray[np.float32]) -> list[float]:
    """Of each run in its fastest round; they take turns."""
    best = [math.inf] * len(runs)
    for run in runs:
        run(x)
    for _ in range(ROUNDS):
        for place, run in enumerate(runs):
            began, repeats = time.process_time(), 0
            while time.process_time() < began + ROUND_SECONDS:
                run(x)
                repeats += 1
            best[place] = min(best[place], 1000 * (time.process_time() - began) / repeats)
    return best


def main() -> None:
    print("| products | engine | tokens | apart, ms | packed, ms | |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, columns in GROUPS.items():
            paths = []
            for packed in (False, True):
                paths.append(Path(folder) / f"{columns[0]}-{packed}.onnx")
                onnx.save(graph(columns, packed), paths[-1])
            for engine, opened in (("ONNX Runtime", on_onnxruntime), ("OpenVINO", on_openvino)):
                runs = [opened(path) for path in paths]
                for tokens in TOKENS:
                    x = np.random.default_rng(0).standard_normal((1, tokens, INPUTS), np.float32)
                    apart, packed = milliseconds(runs, x)
                    print(
                        f"| {name} | {engine} | {tokens} | {apart:.2f} | {packed:.2f} | {apart / packed:.2f}x |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
