"""Where time goes, by kind of operator: `python benchmarks/operator_shares.py [--precision P] [--shape BxS]`.

Four layers of each backbone at full width with random weights (benchmarks/full_size.py), one thread, second run, the
engines' own profilers: ONNX Runtime's kernel times, OpenVINO's counters, which cost time themselves. Shares of the sum.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
from numpy.typing import NDArray

import full_size
from engines import CALIBRATION
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_runtime.bundle import open_bundle

BACKBONES = {"Llama-3.2-1B": full_size.llama_1b, "DeBERTa-v3-large": full_size.pairrm_layers}
LAYERS = 4
LISTED = 0.01
"""Smaller shares are summed up."""

Feeds = dict[str, NDArray[np.int64]]


def of_onnxruntime(graph: Path, feeds: Feeds, folder: Path) -> Counter[str]:
    """Milliseconds by operator type."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(graph), options, ["CPUExecutionProvider"])
    for _ in range(2):
        session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    found: Counter[str] = Counter()
    for event in kernels[len(kernels) // 2 :]:
        found[event["args"]["op_name"]] += event["dur"] / 1000
    return found


def of_openvino(graph: Path, feeds: Feeds) -> Counter[str]:
    """Milliseconds by node type."""
    properties = {
        "INFERENCE_PRECISION_HINT": openvino.Type.f32,
        "INFERENCE_NUM_THREADS": 1,
        "PERF_COUNT": True,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    request = openvino.Core().compile_model(str(graph), "CPU", properties).create_infer_request()
    for _ in range(2):
        request.infer(feeds)
    found: Counter[str] = Counter()
    for node in request.profiling_info:
        found[node.node_type] += node.real_time.total_seconds() * 1000
    return found


def shares(found: Counter[str]) -> str:
    total = sum(found.values())
    listed = [(name, value / total) for name, value in found.most_common() if value / total >= LISTED]
    rest = 1 - sum(share for _, share in listed)
    return ", ".join([f"{name} {share:.1%}" for name, share in listed] + [f"others {rest:.1%}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--shape", default="4x512", help="batch x ids")
    arguments = parser.parse_args()
    ids = np.random.default_rng(0).integers(5, 900, size=tuple(map(int, arguments.shape.split("x"))))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for name, write in BACKBONES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            checkpoint = open_checkpoint(write(folder / "checkpoint", LAYERS))
            bundle = export_checkpoint(
                checkpoint, folder / "bundle", precision=arguments.precision, quantisation=CALIBRATION
            )
            graph = open_bundle(bundle).graph_path("plain")
            for engine, found in (
                ("onnxruntime", of_onnxruntime(graph, feeds, folder)),
                ("openvino", of_openvino(graph, feeds)),
            ):
                print(f"{name}, {arguments.shape}, {engine}: {sum(found.values()):.0f} ms: {shares(found)}", flush=True)


if __name__ == "__main__":
    main()
