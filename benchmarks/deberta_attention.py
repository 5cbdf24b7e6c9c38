"""Forms of DeBERTa's attention: `python benchmarks/deberta_attention.py [--rounds N] [--lengths S ...]`.

Attention of DeBERTa-v3-large's width (16 heads of 64, 512 buckets) with random queries, keys, values and distance
embeddings; two layers in a row, time and memory of one. Every form runs in each engine in a process of its own, in
turns: CPU time of one thread (the median of its runs in its fastest process), and how far a run raises the peak
resident set. All forms must give the numbers of the first one in ONNX Runtime within TOLERANCE.
"rows of heads" is the exporter's own code. About ten minutes a round.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import GraphBuilder

from full_size import DEBERTA_V3_LARGE
from rm_export.build import IR_VERSION, OPSET
from rm_export.graph.deberta_config import DebertaConfig
from rm_export.graph.distances import Distances, DistanceScores, against_buckets
from rm_export.graph.module import Op, Value

CONFIG = DebertaConfig.from_hf(DEBERTA_V3_LARGE)
HEADS, SIZE, BUCKETS = CONFIG.num_heads, CONFIG.head_dim, 2 * CONFIG.relative_span
LAYERS = 2
SHAPES = ((1, 128), (1, 512), (4, 512), (1, 2048))
ENGINES = ("onnxruntime", "openvino")
BLOCKS = 8
SKEWED_ROWS = 128
TOLERANCE = 1e-5
"""Of outputs of deviation about 0.1: float32 sums in another order."""

Bias = Callable[[Op, Value, Value, Value, Value, Distances], Value]
"""query, key [batch, heads, sequence, head_dim], position_key, position_query [heads, head_dim, bucket] -> mask."""
Form = Callable[..., Value]
"""The same and a value before the distances -> attended [batch, heads, sequence, head_dim]."""


def through_attention(bias: Bias) -> Form:
    """The terms enter Attention as its additive mask."""

    def form(op: Op, q: Value, k: Value, v: Value, pk: Value, pq: Value, distances: Distances) -> Value:
        return op.Attention(q, k, v, bias(op, q, k, pk, pq, distances), scale=CONFIG.attention_scale)

    return form


def plain_operators(op: Op, q: Value, k: Value, v: Value, pk: Value, pq: Value, distances: Distances) -> Value:
    """Rows of heads, and attention written out."""
    product = op.MatMul(op.Mul(q, CONFIG.attention_scale), op.Transpose(k, perm=[0, 1, 3, 2]))
    return op.MatMul(op.Softmax(op.Add(product, rows_of_heads(op, q, k, pk, pq, distances)), axis=-1), v)


def rows_of_heads(op: Op, q: Value, k: Value, pk: Value, pq: Value, distances: Distances) -> Value:
    """The form that is exported."""
    bias: Value = DistanceScores(HEADS)(op, q, k, pk, pq, distances)
    return bias


def elements(op: Op, q: Value, k: Value, pk: Value, pq: Value, distances: Distances, cut: bool = False) -> Value:
    """GatherElements, one index of [batch, heads, query, key] for both terms; cut: only of buckets that occur."""
    shape = op.Shape(q)
    length = op.Slice(shape, [2], [3])
    place = op.Unsqueeze(op.Cast(op.Range(0, op.Squeeze(length, [0]), 1), to=ir.DataType.INT32), [1])
    occurring = op.Cast(op.Sub(distances.end, distances.first), to=ir.DataType.INT32)
    bucket = op.Sub(distances.of_query, op.Mul(place, occurring))
    if cut:
        c2p, p2c = against_buckets(op, q, pk, distances), against_buckets(op, k, pq, distances)
    else:
        bucket = op.Add(bucket, op.Cast(distances.first, to=ir.DataType.INT32))
        c2p, p2c = op.MatMul(q, pk), op.MatMul(k, pq)
    index = op.Expand(bucket, op.Concat(op.Slice(shape, [0], [2]), length, length, axis=0))
    p2c = op.Transpose(op.Add(p2c, distances.key_mask), perm=[0, 1, 3, 2])
    return op.Add(op.GatherElements(c2p, index, axis=3), op.GatherElements(p2c, index, axis=2))


def elements_that_occur(op: Op, q: Value, k: Value, pk: Value, pq: Value, distances: Distances) -> Value:
    return elements(op, q, k, pk, pq, distances, cut=True)


def blocked(op: Op, q: Value, k: Value, v: Value, pk: Value, pq: Value, distances: Distances) -> Value:
    """Rows of heads, in BLOCKS blocks of query rows: nothing of [heads, query, key] is ever whole."""

    def rows(scores: Value) -> Value:
        return op.Reshape(op.Transpose(scores, perm=[0, 2, 3, 1]), [0, -1, HEADS])

    c2p = rows(against_buckets(op, q, pk, distances))
    p2c = rows(op.Add(against_buckets(op, k, pq, distances), distances.key_mask))
    length = op.Slice(op.Shape(q), [2], [3])
    each = op.Div(op.Add(length, [BLOCKS - 1]), [BLOCKS])
    bounds = [op.Min(op.Mul(each, [block]), length) for block in range(BLOCKS + 1)]
    sizes = op.Concat(*(op.Sub(end, start) for start, end in pairwise(bounds)), axis=0)
    queries = op.Split(q, sizes, axis=2, _outputs=BLOCKS)
    of_query, of_key = (
        op.Split(index, sizes, axis=0, _outputs=BLOCKS) for index in (distances.of_query, distances.of_key)
    )
    done = []
    for block in range(BLOCKS):
        total = op.Add(op.Gather(c2p, of_query[block], axis=1), op.Gather(p2c, of_key[block], axis=1))
        bias = op.Transpose(total, perm=[0, 3, 1, 2])
        done.append(op.Attention(queries[block], k, v, bias, scale=CONFIG.attention_scale))
    return op.Concat(*done, axis=2)


def skewed(length: int, block: int) -> Bias:
    """Products with every distance of a block of rows, then Slice, Reshape, Slice turn rows into diagonals.

    Written for one length. p2c is made for keys and transposed.
    """
    table = CONFIG.distance_table()
    reach = len(table) // 2

    def diagonals(op: Op, x: Value, positions: Value, sign: int) -> Value:
        """x [..., length, head_dim] -> its scores against distances sign * (own - other), [..., own, other]."""
        done = []
        for start in range(0, length, block):
            rows = min(block, length - start)
            distance = sign * (start + rows - 1 - np.arange(length + rows - 1))
            bucket = table[np.clip(distance, -reach, reach) + reach]
            window = op.Gather(positions, op.Constant(value=ir.tensor(bucket)), axis=2)
            scores = op.MatMul(op.Slice(x, [start], [start + rows], [2]), window)
            flat = op.Reshape(scores, [0, 0, -1])
            flat = op.Slice(flat, [rows - 1], [rows * (length + rows - 1) - 1], [2])
            done.append(op.Slice(op.Reshape(flat, [0, 0, rows, length + rows - 2]), [0], [length], [3]))
        return done[0] if len(done) == 1 else op.Concat(*done, axis=2)

    def bias(op: Op, q: Value, k: Value, pk: Value, pq: Value, distances: Distances) -> Value:
        p2c = op.Transpose(op.Add(diagonals(op, k, pq, -1), distances.key_mask), perm=[0, 1, 3, 2])
        return op.Add(diagonals(op, q, pk, 1), p2c)

    return bias


def forms(length: int) -> dict[str, Form]:
    """All forms at this length, the reference first."""
    return {
        "GatherElements, all buckets": through_attention(elements),
        "GatherElements, buckets that occur": through_attention(elements_that_occur),
        "skew": through_attention(skewed(length, length)),
        f"skew, blocks of {SKEWED_ROWS} rows": through_attention(skewed(length, SKEWED_ROWS)),
        "rows of heads": through_attention(rows_of_heads),
        f"rows of heads, {BLOCKS} blocks of queries": blocked,
        "rows of heads, plain operators": plain_operators,
    }


def model(form: Form) -> bytes:
    """LAYERS layers of it; a layer's output is the next one's value, its key the next one's query."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="attention")
    builder = GraphBuilder(graph)
    op, shape = builder.op, ["batch", HEADS, "sequence", SIZE]
    q, k, v = (builder.input(name, ir.DataType.FLOAT, shape) for name in ("query", "key", "value"))
    mask = builder.input("attention_mask", ir.DataType.INT64, ["batch", "sequence"])
    rng = np.random.default_rng(1)
    pk, pq = (
        op.initializer(
            ir.tensor(np.float32(CONFIG.attention_scale) * rng.standard_normal((HEADS, SIZE, BUCKETS), np.float32)),
            name=name,
        )
        for name in ("position_key", "position_query")
    )
    distances = Distances(op, mask, CONFIG)
    for _ in range(LAYERS):
        q, k, v = k, v, form(op, q, k, v, pk, pq, distances)
    v.type, v.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    builder.add_output(v, "attended")
    content: bytes = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    return content


def opened(engine: str, content: bytes) -> Callable[[dict[str, Any]], NDArray[np.float32]]:
    """The model in an engine, with one thread and the options of rm_runtime."""
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(content, options)
        return lambda feeds: np.asarray(session.run(None, feeds)[0])
    import openvino

    core = openvino.Core()
    properties = {
        "INFERENCE_PRECISION_HINT": openvino.Type.f32,
        "INFERENCE_NUM_THREADS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(content), "CPU", properties)
    return lambda feeds: np.asarray(compiled.create_infer_request().infer(feeds, share_inputs=True)[0])


def measure(name: str, engine: str, batch: int, length: int, output: Path) -> None:
    """One form in this process: its figures as JSON, its numbers into a file."""
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {
        part: rng.standard_normal((batch, HEADS, length, SIZE), np.float32) for part in ("query", "key", "value")
    }
    feeds["attention_mask"] = np.ones((batch, length), np.int64)
    feeds["attention_mask"][1:, length - length // 4 :] = 0
    run = opened(engine, model(forms(length)[name]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.save(output, run(feeds))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(3 if length > 1000 else 7):
        began = time.process_time()
        run(feeds)
        seconds.append(time.process_time() - began)
    print(json.dumps({"ms": 1000 * statistics.median(seconds) / LAYERS, "mib": (peak - before) / 1024}))


def measured(name: str, engine: str, batch: int, length: int, reference: Path) -> dict[str, float]:
    """The figures of a process of its own. Raises ValueError if its numbers are not the reference's."""
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        arguments = [__file__, "--form", name, engine, str(batch), str(length), file.name]
        done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
        numbers = np.load(file.name)
    if not reference.exists():
        np.save(reference, numbers)
    error = np.abs(numbers - np.load(reference)).max()
    if not error <= TOLERANCE:
        raise ValueError(f"{name} on {engine}, {batch} x {length}: numbers are {error:.1e} off")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=[length for _, length in SHAPES])
    parser.add_argument("--form", nargs=5, help="what one process measures: form, engine, batch, length, output")
    arguments = parser.parse_args()
    if arguments.form:
        name, engine, batch, length, output = arguments.form
        measure(name, engine, int(batch), int(length), Path(output))
        return
    for batch, length in (shape for shape in SHAPES if shape[1] in arguments.lengths):
        print(f"\n| {batch} x {length} | {' | '.join(f'{engine}: ms, MiB' for engine in ENGINES)} |\n|---|---|---|")
        with tempfile.TemporaryDirectory() as folder:
            best: dict[tuple[str, str], list[dict[str, float]]] = {}
            for _ in range(arguments.rounds):
                for name in forms(length):
                    for engine in ENGINES:
                        figures = measured(name, engine, batch, length, Path(folder) / "reference.npy")
                        best.setdefault((name, engine), []).append(figures)
        for name in forms(length):
            rounds = [best[name, engine] for engine in ENGINES]
            cells = [f"{min(f['ms'] for f in each):.1f}, {min(f['mib'] for f in each):.0f}" for each in rounds]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
