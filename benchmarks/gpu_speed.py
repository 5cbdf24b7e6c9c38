"""How fast full-size shapes run on a GPU, beside Hugging Face bfloat16: a part of benchmarks/gpu.py.

Random weights at full width and depth, a small vocabulary. A contender's time is from ids in the host's memory to
scores in the host's memory, so the device has finished; contenders take turns, and the median of the rounds counts.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import full_size
from rm_export.checkpoint import Checkpoint, open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_export.lowering import TARGETS
from rm_export.reference_weights import CheckpointWeights, hf_config, hf_model
from rm_runtime.batching import pad_rows, run_rows
from rm_runtime.bundle import open_bundle
from rm_runtime.engines import open_engine

Rows = list[NDArray[np.int64]]
Run = Callable[[Rows], object]

BATCH_TOKENS = 16384
"""All of a work in one batch, as Hugging Face has it."""


@dataclass(frozen=True)
class Work:
    """rows of `length` ids that share their first `prefix` ones."""

    name: str
    rows: int
    length: int
    prefix: int = 0

    @property
    def tokens(self) -> int:
        """Ids that are scored, shared or not: what tokens per second counts."""
        return self.rows * self.length

    def ids(self) -> Rows:
        rng = np.random.default_rng(0)
        shared = rng.integers(5, 900, self.prefix)
        own = rng.integers(5, 900, (self.rows, self.length - self.prefix))
        return [np.concatenate([shared, row]) for row in own]


LLAMA_WORKS = (Work("4 x 512", 4, 512), Work("best of 16, 800 + 200", 16, 1000, 800))
PAIRRM_WORKS = (Work("8 x 512", 8, 512), Work("2 x 2048", 2, 2048))


@dataclass(frozen=True)
class Plan:
    """What is measured. shrink: config.json keys and the divisor of lengths of a dry run, None for the real one."""

    device: str
    precisions: tuple[str, ...]
    rounds: int
    shrink: tuple[Mapping[str, int], int] | None = None

    def works(self, works: Sequence[Work]) -> list[Work]:
        divisor = self.shrink[1] if self.shrink else 1
        return [replace(work, length=work.length // divisor, prefix=work.prefix // divisor) for work in works]

    def overrides(self) -> dict[str, int]:
        return dict(self.shrink[0]) if self.shrink else {}


def matmul_peak(device: str, dtype: torch.dtype, size: int, rounds: int) -> float:
    """Operations per second of torch's product of two [size, size] matrices, the median of the rounds."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(rounds + 2):  # the first two choose the kernel and raise the clock
        began = time.perf_counter()
        for _ in range(4):
            product = a @ b
        float(product[0, 0])  # waits for the device
        seconds.append((time.perf_counter() - began) / 4)
    return 2 * size**3 / statistics.median(seconds[2:])


def llama(plan: Plan, size: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Figures of one Llama shape."""
    checkpoint = open_checkpoint(full_size.llama(folder / "checkpoint", size, **plan.overrides()))
    yield from _compared(plan, checkpoint, "model.", ["sdpa", "flash_attention_2"], LLAMA_WORKS, folder)


def pairrm(plan: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    """Figures of PairRM's shape. transformers has no fused attention for it."""
    overrides = plan.overrides()
    overrides.pop("num_key_value_heads", None)
    layers = overrides.pop("num_hidden_layers", 24)
    checkpoint = open_checkpoint(full_size.pairrm_layers(folder / "checkpoint", layers, **overrides))
    yield from _compared(plan, checkpoint, "pretrained_model.", ["eager"], PAIRRM_WORKS, folder)


def _compared(
    plan: Plan, checkpoint: Checkpoint, prefix: str, attentions: Sequence[str], works: Sequence[Work], folder: Path
) -> Iterator[dict[str, Any]]:
    """One figure a work, precision and contender. Bundles are written and removed one after the other."""
    model = hf_model("AutoModel", hf_config(checkpoint.config), "bfloat16", attentions[0])
    model = CheckpointWeights(checkpoint).load(model, prefix, "bfloat16").to(plan.device)
    for precision in plan.precisions:
        bundle = _exported(checkpoint, folder / precision, precision, plan.device)
        for work in plan.works(works):
            runs = {f"HF bfloat16, {name}": hugging_face(model, name, plan.device) for name in _present(attentions)}
            runs[f"ONNX Runtime {precision}"] = exported(bundle, plan.device, share=False)
            if work.prefix:
                runs[f"ONNX Runtime {precision}, shared prefix"] = exported(bundle, plan.device, share=True)
            reference, *_ = seconds = median_seconds(runs, work.ids(), plan.rounds)
            for name, taken in seconds.items():
                shared = work.prefix if name.endswith("shared prefix") else 0
                yield {
                    "work": work.name,
                    "contender": name,
                    "seconds": taken,
                    "tokens_per_second": work.tokens / taken,
                    "ratio": seconds[reference] / taken,
                    "flops": flops(checkpoint.config, work.rows, work.length, shared),
                }
            runs.clear()
            gc.collect()  # closes the engines before the next work opens its own
        for path in bundle.iterdir():
            path.unlink()


def _exported(checkpoint: Checkpoint, folder: Path, precision: str, device: str) -> Path:
    """A bundle with the second graph on every device: CUDA's target leaves it out until this script has run on one."""
    target, TARGETS[device] = TARGETS[device], replace(TARGETS[device], shared_prefix=True)
    try:
        return export_checkpoint(checkpoint, folder, precision=precision, target=device)
    finally:
        TARGETS[device] = target


def _present(attentions: Sequence[str]) -> list[str]:
    flash = find_spec("flash_attn") is not None and torch.cuda.is_available()
    return [name for name in attentions if name != "flash_attention_2" or flash]


def hugging_face(model: Any, attention: str, device: str) -> Run:
    """The backbone on all rows at once, padded on the right; the head is left out, to its advantage."""

    def run(rows: Rows) -> object:
        model.set_attn_implementation(attention)
        ids, mask = pad_rows(rows, 0)
        with torch.inference_mode():
            hidden = model(torch.from_numpy(ids).to(device), attention_mask=torch.from_numpy(mask).to(device))
        return hidden.last_hidden_state[:, -1].float().cpu()

    return run


def exported(bundle: Path, device: str, share: bool) -> Run:
    opened = open_bundle(bundle)
    engine = open_engine(opened, "onnxruntime", device=device, share_prefixes=share)
    return lambda rows: run_rows(engine, rows, opened.manifest.pad_token_id, BATCH_TOKENS)


def median_seconds(runs: Mapping[str, Run], rows: Rows, rounds: int) -> dict[str, float]:
    """Seconds of each run: the median of the rounds, after two that warm it up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            began = time.perf_counter()
            run(rows)
            if turn >= 2:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def flops(config: Mapping[str, Any], rows: int, length: int, prefix: int) -> float:
    """Floating-point operations of the layers' products and attention, those of a shared prefix once.

    Causal attention counts the visible half. DeBERTa's adds the products with its 2 * position_buckets distances.
    """
    hidden, inner, layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads = config["num_attention_heads"]
    own = length - prefix
    tokens = prefix + rows * own
    if config["model_type"] == "deberta-v2":
        parameters = 4 * hidden**2 + 2 * hidden * inner
        attention = rows * (4 * length**2 + 8 * length * config["position_buckets"]) * hidden
    else:
        size = config.get("head_dim") or hidden // heads
        parameters = 2 * hidden * size * (heads + config["num_key_value_heads"]) + 3 * hidden * inner
        seen = prefix**2 / 2 + rows * own * (prefix + own / 2)
        attention = 4 * seen * heads * size
    return float(layers * (2 * parameters * tokens + attention))


def table(rows: Sequence[dict[str, Any]], peaks: Mapping[str, float]) -> str:
    """Markdown; the last column compares with torch's product of large matrices in the same run, in its faster type."""
    peak = max(peaks.values())
    lines = ["| work | contender | ms | tokens/s | times HF | of the matmul peak |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['work']} | {row['contender']} | {1000 * row['seconds']:.1f} | {row['tokens_per_second']:,.0f} | "
        f"{row['ratio']:.2f} | {100 * row['flops'] / row['seconds'] / peak:.0f} % |"
        for row in rows
    ]
    return "\n".join(lines)
