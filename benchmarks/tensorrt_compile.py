"""How long TensorRT compiles, and how large its plans are: `python benchmarks/tensorrt_compile.py [--json F]`.

TensorRT-RTX on the CPU, or TensorRT where it is installed: one layer of Llama-3-8B and of DeBERTa-v3-large at full
width with random weights (benchmarks/full_size.py), the graph of the contract and that of a shared prefix, in every
precision, three profiles each. Some minutes, 8 GiB.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import full_size
from engines import CALIBRATION
from rm_export.bundle import Silent
from rm_export.checkpoint import open_checkpoint
from rm_export.engine import EngineOptions, compile_graph
from rm_export.engine_profiles import Bucket, profiles_for
from rm_export.exporter import export_checkpoint
from rm_runtime.bundle import open_bundle
from rm_runtime.engines.tensorrt_plans import installed_package

PRECISIONS = ("fp16", "bf16", "int8", "fp8", "w8", "w4")
BUCKETS = (Bucket(32, 128), Bucket(8, 512), Bucket(2, 2048))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--precisions", nargs="*", default=PRECISIONS)
    arguments = parser.parse_args()
    package = installed_package()
    if package is None:
        raise SystemExit("no TensorRT is installed")
    figures: dict[str, Any] = {"package": package}
    print(f"{package}\n\n| one layer of | precision | graph | seconds | weights, MiB | plan, MiB |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        layers = {
            "Llama-3-8B": full_size.llama(folder / "llama", "8B", num_hidden_layers=1),
            "DeBERTa-v3-large": full_size.pairrm_layers(folder / "pairrm", layers=1),
        }
        for name, checkpoint in layers.items():
            for precision in arguments.precisions:
                bundle = open_bundle(
                    export_checkpoint(
                        open_checkpoint(checkpoint),
                        folder / f"{name}-{precision}",
                        precision=precision,
                        target="tensorrt",
                        quantisation=CALIBRATION,
                    )
                )
                limit = bundle.manifest.prompt.max_length
                for role in bundle.manifest.graphs:
                    began = time.perf_counter()
                    profiles = profiles_for(role, BUCKETS, limit)
                    compiled = compile_graph(package, bundle.graph_path(role), profiles, EngineOptions(), Silent())
                    seconds, size = time.perf_counter() - began, memoryview(compiled.plan).nbytes
                    figures[f"{name}, {precision}, {role}"] = {"seconds": seconds, "plan_bytes": size}
                    sizes = f"{bundle.weight_bytes / 2**20:.0f} | {size / 2**20:.0f}"
                    print(f"| {name} | {precision} | {role} | {seconds:.1f} | {sizes} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
