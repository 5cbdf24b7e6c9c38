"""How much of the planned batches is padding, and what that costs: `python benchmarks/padding.py [BUNDLE]`.

Lengths are drawn as the mixed-length work has them (uniform from 50 to 1,500 ids) and as `rm-runtime bench` has them
(chats), by the number of rows at hand. "whole budget" is the plan that fills every batch to the token budget. With a
bundle, both plans take turns on rows of these lengths in ONNX Runtime; CPU time of one thread, the faster of 2 rounds.
"""

from __future__ import annotations

import math
import sys
import time

import numpy as np

from rm_runtime.batching import MAX_PADDING, pad_rows, plan_batches
from rm_runtime.bench.chats import draw_chats
from rm_runtime.bundle import Bundle, open_bundle
from rm_runtime.engines import Engine, open_engine

ROWS = (8, 64, 256)
BUDGETS = (4096, 16384)
ROUNDS = 2
PLANS = (MAX_PADDING, 1.0)


def mixed(rows: int) -> list[int]:
    """Lengths from 50 to 1,500."""
    lengths: list[int] = np.random.default_rng(0).integers(50, 1501, rows).tolist()
    return lengths


def chats(rows: int) -> list[int]:
    """Words of built-in chats, as many as ids where a word is one."""
    drawn = draw_chats(rows, 1, 1.0, 2000, seed=0)
    return [sum(len(text.split()) for text in (*(m["content"] for m in c.messages), *c.responses)) for c in drawn]


def described(lengths: list[int], batches: list[list[int]]) -> str:
    """Share of padding, and batches."""
    area = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    return f"{100 * (1 - sum(lengths) / area):.1f} %, {len(batches)}"


def seconds(engine: Engine, bundle: Bundle, lengths: list[int], plans: list[list[list[int]]]) -> list[float]:
    """CPU time of each plan in its fastest round."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, 900, length) for length in lengths]
    best = [math.inf] * len(plans)
    for _ in range(ROUNDS):
        for place, batches in enumerate(plans):
            began = time.process_time()
            for batch in batches:
                ids, mask = pad_rows([rows[row] for row in batch], bundle.manifest.pad_token_id)
                engine.run({"input_ids": ids, "attention_mask": mask})
            best[place] = min(best[place], time.process_time() - began)
    return best


def main() -> None:
    bundle = open_bundle(sys.argv[1]) if len(sys.argv) > 1 else None
    engine = open_engine(bundle, "onnxruntime", threads=1) if bundle else None
    print("| lengths | rows | budget | padding, batches | whole budget | speed |\n|---|---|---|---|---|---|")
    for draw in (mixed, chats):
        for rows in ROWS:
            lengths = draw(rows)
            for budget in BUDGETS:
                plans = [plan_batches(lengths, budget, max_padding) for max_padding in PLANS]
                cells = [described(lengths, batches) for batches in plans]
                speed = ""
                if bundle and engine:
                    bounded, whole = seconds(engine, bundle, lengths, plans)
                    speed = f"{whole / bounded:.2f}x"
                print(f"| {draw.__name__} | {rows} | {budget} | {' | '.join(cells)} | {speed} |", flush=True)


if __name__ == "__main__":
    main()
