"""Bundles on a GPU: `python benchmarks/gpu.py [--stages parity,1B,3B,8B,pairrm] [--dry-run] [--json F]`.

parity: every family in float16 and bfloat16 against the float32 reference (gpu_parity.py). 1B, 3B, 8B, pairrm: speed
of the full-size shapes against Hugging Face bfloat16 (gpu_speed.py): a plain batch, best of 16 with and without the
shared prefix, PairRM at 512 and 2,048 ids; tokens per second, ratio, and the share of the matmul peak that torch
reaches in the same run. Figures go to benchmarks/results/gpu-NAME-DATE.json after each stage; further stages may be
added in later runs. Needs torch with CUDA, transformers and onnxruntime-gpu built for the same major version of CUDA;
for 8B 50 GB of disk and 50 GB on the GPU.

--dry-run runs the same code on the CPU in a minute or two: one narrow layer, short rows, few conversations, and float32
for bfloat16, which ONNX Runtime's CPU has no attention for. Its figures mean nothing, and it writes none unless --json
asks for them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxruntime
import torch

import gpu_parity
import gpu_speed
from rm_calibration.conversations import default_conversations
from rm_runtime.bench.machine import machine_facts, versions_of

STAGES = ("parity", "1B", "3B", "8B", "pairrm")
RESULTS = Path(__file__).parent / "results"
PRECISIONS = {"cuda": ("fp16", "bf16"), "cpu": ("fp16", "fp32")}
ROUNDS, PEAK_SIZE = 11, 8192
DRY_SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
DRY_DIVISOR, DRY_EXAMPLES, DRY_ROUNDS, DRY_PEAK_SIZE = 16, 3, 1, 128
DRY_CASES = ("armorm", "armorm, gemma2", "grm", "pair-pm", "dpa-rm", "scalar, qwen3", "pairrm")


def device_facts(device: str) -> dict[str, Any]:
    """Name, driver, CUDA and package versions."""
    facts = {"versions": versions_of("torch", "transformers", "onnxruntime", "flash_attn"), "machine": machine_facts()}
    if device == "cpu":
        return {"name": "cpu", **facts}
    query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    driver, _, memory = subprocess.run(query, capture_output=True, text=True, check=True).stdout.partition(",")
    return {
        "name": torch.cuda.get_device_name(),
        "driver": driver.strip(),
        "memory": memory.splitlines()[0].strip(),
        "capability": list(torch.cuda.get_device_capability()),
        "cuda": torch.version.cuda,
        **facts,
    }


def run_stage(stage: str, plan: gpu_speed.Plan) -> dict[str, Any]:
    """The stage's figures; prints its table."""
    if stage == "parity":
        examples = default_conversations()[:DRY_EXAMPLES] if plan.shrink else None
        cases = DRY_CASES if plan.shrink else tuple(gpu_parity.CASES)
        rows = list(gpu_parity.parity(plan.device, plan.precisions, examples, cases))
        print(f"\n### parity\n{gpu_parity.table(rows)}", flush=True)
        return {"rows": rows}
    size = DRY_PEAK_SIZE if plan.shrink else PEAK_SIZE
    types = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    peaks = {name: gpu_speed.matmul_peak(plan.device, dtype, size, plan.rounds) for name, dtype in types.items()}
    with tempfile.TemporaryDirectory() as folder:
        if stage == "pairrm":
            rows = list(gpu_speed.pairrm(plan, Path(folder)))
        else:
            rows = list(gpu_speed.llama(plan, stage, Path(folder)))
    measured = ", ".join(f"{name} {peak / 1e12:.2f}" for name, peak in peaks.items())
    print(f"\n### {stage}; matmul peak in TFLOP/s: {measured}\n{gpu_speed.table(rows, peaks)}", flush=True)
    return {"matmul_peak": peaks, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(PRECISIONS), default="cuda")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--json", type=Path, help="write, or add, the figures here")
    arguments = parser.parse_args()
    stages = arguments.stages.split(",")
    if set(stages) - set(STAGES):
        parser.error(f"--stages takes {', '.join(STAGES)}")
    device = "cpu" if arguments.dry_run else arguments.device
    shrink = (DRY_SHAPE, DRY_DIVISOR) if arguments.dry_run else None
    plan = gpu_speed.Plan(device, PRECISIONS[device], DRY_ROUNDS if shrink else ROUNDS, shrink)
    if device == "cuda":
        onnxruntime.preload_dlls()  # those that torch brought
    else:
        torch.set_num_threads(1)  # small products on many threads mostly wait
    facts, path = device_facts(device), arguments.json
    if path is None and not arguments.dry_run:
        name = re.sub(r"[^a-z0-9]+", "-", facts["name"].lower()).strip("-")
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"gpu-{name}-{time.strftime('%Y-%m-%d')}.json"
    print(f"{facts['name']}; {', '.join(f'{name} {one}' for name, one in facts['versions'].items())}")
    figures: dict[str, Any] = {"device": facts, "dry_run": arguments.dry_run, "stages": {}}
    if path is not None and path.exists():
        figures["stages"] = json.loads(path.read_text())["stages"]
    for stage in stages:
        figures["stages"][stage] = run_stage(stage, plan)
        if path is not None:
            path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
