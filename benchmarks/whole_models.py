"""Whole models against transformers, the first table of docs/performance.md: `python benchmarks/whole_models.py`.

Full-size shapes with random weights and small vocabularies (benchmarks/full_size.py), every contender in a process of
its own (rm_runtime.bench), the same rows of ids for all, in turns. transformers runs its backbone without the head, in
the batches a script around it has. About half an hour on two cores, and 12 GiB of memory; `--works` picks some,
`--layers` makes models shallower: ratios rise, since the last layer computes less. What int8 does to decisions is in
docs/int8.md; random weights have none.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from rm_runtime.bundle import open_bundle
from rm_runtime.token_budget import default_batch_tokens

Rows = list[NDArray[np.int64]]

SINGLE, HALF = "hf-float32", "hf-bfloat16"
ROUNDS, LONG_ROUNDS = 3, 2
LONG_TOKENS = 5_000
"""Work of more tokens is repeated less often."""
MIXED_CHATS = 48
DECODER = {"int8": ("openvino", "onnxruntime", "openvino-bf16")}
ENCODER = {"int8": ("onnxruntime", "openvino", "openvino-bf16"), "fp32": ("onnxruntime", "openvino-bf16")}
"""Engines by precision. bfloat16 decides otherwise than the bundle: benchmarks/int8_quality.py tells how often."""


@dataclass(frozen=True)
class Work:
    """Rows as one request. engines: by precision. references: transformers' types; reference_rows: its batch."""

    name: str
    model: str
    rows: Rows
    engines: Mapping[str, Sequence[str]]
    references: Sequence[str]
    reference_rows: int

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


def works() -> list[Work]:
    """The table's rows of work."""
    rng = np.random.default_rng(0)

    def ids(length: int) -> NDArray[np.int64]:
        return rng.integers(5, 900, size=length)

    def behind(prefix: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        return np.concatenate([prefix, ids(length)])

    prompt, context, first, second = ids(800), ids(800), ids(200), ids(200)
    mixed = rng.integers(50, 1501, size=MIXED_CHATS)
    llama, both = "Llama-3.2-1B", [SINGLE, HALF]
    source, candidates = ids(255), [ids(127) for _ in range(8)]
    places = range(len(candidates))
    ranked = [pairrm_row(source, candidates[i], candidates[j]) for i in places for j in places if i != j]
    return [
        Work("4 x 512", llama, [ids(512) for _ in range(4)], DECODER, both, 4),
        Work("1 x 128", llama, [ids(128)], DECODER, both, 1),
        Work("best of 8, 800 + 200", llama, [behind(prompt, 200) for _ in range(8)], DECODER, [HALF], 8),
        Work(f"{MIXED_CHATS} chats of 50 to 1,500", llama, [ids(length) for length in mixed], DECODER, [HALF], 8),
        Work(
            "two orders, 800 + 200 + 200",
            "Llama-3.2-1B, pair-pm",
            [np.concatenate([context, *pair]) for pair in ((first, second), (second, first))],
            DECODER,
            [HALF],
            1,
        ),
        Work("1 x 512", "PairRM", [pairrm_row(ids(255), ids(127), ids(127))], ENCODER, both, 1),
        Work("1 x 2,048", "PairRM", [pairrm_row(ids(1023), ids(511), ids(511))], ENCODER, both, 1),
        # llm-blender runs one input's pairs one by one (semantics.md 5)
        Work("rank of 8: 56 x 512", "PairRM", ranked, ENCODER, both, 1),
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
        "share_prefixes": True,
        "batch_rows": work.reference_rows,
        "rows": [row.tolist() for row in work.rows],
    }
    every = list(range(len(work.rows)))
    with contextlib.ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        for precision, engines in work.engines.items():
            for spec in contender_specs(engines):
                bundle = open_bundle(bundles[precision])
                own = {"bundle": str(bundle.path), "batch_tokens": default_batch_tokens(bundle, "cpu")}
                contenders[f"{spec.name}, {precision}"] = Contender(spec, settings | own)
        for spec in contender_specs([], "hf"):
            if spec.name not in work.references:
                continue
            contenders[spec.name] = Contender(spec, settings | {"bundle": str(next(iter(bundles.values())))})
        for contender in contenders.values():
            stack.callback(contender.stop)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for contender in contenders.values():
            contender.run(every[:2])  # opens the graph of a shared prefix too
        for turn in range(ROUNDS if work.tokens <= LONG_TOKENS else LONG_ROUNDS):
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


def table_rows(work: Work, figures: Mapping[str, Any]) -> Iterator[str]:
    """Markdown: seconds of every contender, and how many times faster than each reference."""
    for name, figure in figures.items():
        seconds = figure["seconds"]
        ratios = [f"{figures[of]['seconds'] / seconds:.2f}" if of in figures else "" for of in (HALF, SINGLE)]
        memory = f"{figure['peak_bytes'] / 2**30:.1f} GiB"
        yield f"| {work.model}, {work.name} | {name} | {seconds:.3f} | {' | '.join(ratios)} | {memory} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--layers", type=int, help="of every model; default: all it has")
    parser.add_argument("--works", nargs="*", help="only those whose model and name contain one of these")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine_facts(), "layers": arguments.layers, "works": {}}
    print(f"{figures['machine']}\n\n| work | contender | seconds | x bfloat16 | x float32 | peak memory |")
    print("|---|---|---|---|---|---|", flush=True)
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
                print("\n".join(table_rows(work, of)), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
