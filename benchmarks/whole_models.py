"""Whole models against transformers, the first table of docs/performance.md: `python benchmarks/whole_models.py`.

Full-size shapes with random weights and small vocabularies (benchmarks/full_size.py), every contender in a process of
its own (rm_runtime.bench), the same rows of ids for all, in turns. transformers runs its backbone without the head, in
the batches a script around it has. About an hour on two cores and 12 GiB of memory; `--works` picks some, `--layers`
makes models shallower (ratios hardly change). Random weights have no decisions to keep: docs/int8.md has those.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

import full_size
from engines import CALIBRATION
from rm_export.exporter import export_checkpoint
from rm_export.hub import open_checkpoint_at
from rm_runtime.bench.contenders import Contender, contender_specs
from rm_runtime.bench.machine import machine_facts
from rm_runtime.bench.scenarios import in_turns

Rows = list[NDArray[np.int64]]

REFERENCES = ("hf-float32", "hf-bfloat16")
ROUNDS = 3
MIXED_CHATS = 256
PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True)
class Work:
    """Rows as one request. reference_rows: how many of them transformers takes at once. engines: by precision."""

    name: str
    model: str
    rows: Rows
    reference_rows: int
    engines: dict[str, Sequence[str]]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))


@dataclass(frozen=True)
class Model:
    """write: (folder, layers) -> its checkpoint."""

    write: Callable[[Path, int], Path]
    layers: int


MODELS = {
    "Llama-3.2-1B": Model(full_size.llama_1b, 16),
    "Llama-3.2-1B, pair-pm": Model(full_size.pair_pm_1b, 16),
    "PairRM": Model(full_size.pairrm_layers, 24),
}
DECODER = {"int8": ("openvino", "onnxruntime")}
ENCODER = {"int8": ("onnxruntime", "openvino"), "fp32": ("onnxruntime",)}


def works() -> list[Work]:
    """The table's rows of work."""
    rng = np.random.default_rng(0)

    def ids(length: int) -> NDArray[np.int64]:
        return rng.integers(5, 900, size=length)

    def behind(prefix: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        return np.concatenate([prefix, ids(length)])

    prompt, context, first, second = ids(800), ids(800), ids(200), ids(200)
    mixed = rng.integers(50, 1501, size=MIXED_CHATS)
    source, candidates = ids(254), [ids(127) for _ in range(8)]
    places = range(len(candidates))
    ranked = [pairrm_row(source, candidates[i], candidates[j]) for i in places for j in places if i != j]
    return [
        Work("4 x 512", "Llama-3.2-1B", [ids(512) for _ in range(4)], 4, DECODER),
        Work("1 x 128", "Llama-3.2-1B", [ids(128)], 1, DECODER),
        Work("best of 8, 800 + 200", "Llama-3.2-1B", [behind(prompt, 200) for _ in range(8)], 8, DECODER),
        Work(f"{MIXED_CHATS} chats of 50 to 1,500", "Llama-3.2-1B", [ids(length) for length in mixed], 8, DECODER),
        Work(
            "two orders, 800 + 200 + 200",
            "Llama-3.2-1B, pair-pm",
            [np.concatenate([context, *pair]) for pair in ((first, second), (second, first))],
            1,
            DECODER,
        ),
        Work("1 x 512", "PairRM", [pairrm_row(ids(254), ids(127), ids(127))], 1, ENCODER),
        Work("1 x 2,048", "PairRM", [pairrm_row(ids(1022), ids(511), ids(511))], 1, ENCODER),
        # llm-blender runs one input's pairs one by one (semantics.md 5)
        Work("rank of 8: 56 x 512", "PairRM", ranked, 1, ENCODER),
    ]


def pairrm_row(*segments: NDArray[np.int64]) -> NDArray[np.int64]:
    """Source and two candidates, each behind its prefix token, as PairRM reads them."""
    prefixes = full_size.pairrm_prefixes()
    return np.concatenate([part for pair in zip(prefixes, segments, strict=True) for part in ([pair[0]], pair[1])])


def measured(work: Work, checkpoint: Path, bundles: dict[str, Path], threads: int | None) -> dict[str, Any]:
    """Median seconds of every contender, its load time and its peak memory."""
    settings = {
        "checkpoint": str(checkpoint),
        "threads": threads,
        "device": None,
        "batch_tokens": 4096,
        "batch_rows": work.reference_rows,
        "rows": [row.tolist() for row in work.rows],
    }
    every = list(range(len(work.rows)))
    with contextlib.ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        for precision, engines in work.engines.items():
            for spec in contender_specs(engines):
                bundle = str(bundles[precision])
                contenders[f"{spec.name}, {precision}"] = Contender(spec, settings | {"bundle": bundle})
        for spec in contender_specs([], "hf"):
            contenders[spec.name] = Contender(spec, settings | {"bundle": str(next(iter(bundles.values())))})
        for contender in contenders.values():
            stack.callback(contender.stop)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for contender in contenders.values():
            contender.run(every[:8])
        for turn in range(ROUNDS if work.tokens < 50_000 else 1):
            for name in in_turns(contenders, turn):
                seconds[name].append(contenders[name].run(every))
        return {
            name: {
                "seconds": median(of),
                "rounds": of,
                "load_seconds": contenders[name].opened["load_seconds"],
                "peak_bytes": contenders[name].close(),
            }
            for name, of in seconds.items()
        }


def table_row(work: Work, figures: dict[str, Any]) -> str:
    single, half = (figures[name]["seconds"] for name in REFERENCES)
    cells = [f"{single:.3f}", f"{half:.3f}"]
    for name, figure in figures.items():
        if name not in REFERENCES:
            own = figure["seconds"]
            cells.append(f"{name}: {own:.3f} s, {half / own:.2f}x bfloat16, {single / own:.2f}x float32")
    return f"| {work.model}, {work.name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--layers", type=int, help="of every model; default: all it has")
    parser.add_argument("--works", nargs="*", help="only those whose model and name contain one of these")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine_facts(), "layers": arguments.layers, "works": {}}
    print(f"{figures['machine']}\n\n| work | HF float32, s | HF bfloat16, s | ours |\n|---|---|---|---|", flush=True)
    for model, shape in MODELS.items():
        chosen = [
            work
            for work in works()
            if work.model == model
            and (not arguments.works or any(part in f"{model}, {work.name}" for part in arguments.works))
        ]
        if not chosen:
            continue
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = shape.write(Path(folder) / "checkpoint", arguments.layers or shape.layers)
            bundles = {
                precision: export_checkpoint(
                    open_checkpoint_at(str(checkpoint), None),
                    Path(folder) / precision,
                    precision=precision,
                    quantisation=CALIBRATION,
                )
                for precision in {precision for work in chosen for precision in work.engines}
            }
            for work in chosen:
                of = measured(work, checkpoint, bundles, arguments.threads)
                figures["works"][f"{model}, {work.name}"] = of
                print(table_row(work, of), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
