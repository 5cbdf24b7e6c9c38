"""How the judges of trained_pairs.py learn: which comparisons they see, in which batches, with which loss.

Every comparison is seen in both orders. Its label is a probability: the logistic function of how much better the first
answer's grade is. Everything is seeded.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from asked import ask, example_of
from rm_export.demo import checkpoint_path
from rm_export.demo.preferences import Comparison, comparisons

if TYPE_CHECKING:
    from torch import Tensor, nn

    Logits = Callable[[Tensor, Tensor], Tensor]

SEED = 7
COMPARISONS = 8_000
PAIRS_IN_BATCH = 16
BATCHES_IN_POOL = 64
PEAK_LEARNING_RATE = 1e-3
WARMUP_STEPS = 100
SHARPNESS = 6.0
"""Logit of the label for a difference of 1 in grade: "clear" (0.92) beats "short" (0.64) with 84 %."""


def train(folder: Path, model: nn.Module, logits: Logits, pad: int) -> None:
    """One pass with AdamW, a short warm-up and a cosine schedule; trains `model` in place and prints its loss.

    folder: an untrained checkpoint of the family, whose prompt makes the rows. logits: (ids, mask), both [rows, length]
    -> [rows], positive where the first answer is better. pad: the id of padding.
    """
    import torch
    from torch.nn import functional as F
    from transformers import PreTrainedTokenizerFast

    from rm_export.demo.train import content_tokens, rename

    torch.set_num_threads(1)
    began = time.process_time()
    training = list(comparisons(COMPARISONS, SEED, "train", 2))
    content = content_tokens(PreTrainedTokenizerFast.from_pretrained(checkpoint_path()), training)
    rows, labels = _rows(folder, training)
    vocab_size = 1 + max(pad, *(int(row.max()) for row in rows))
    order = list(_batches(rows))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=len(order), pct_start=WARMUP_STEPS / len(order)
    )
    model.train()
    losses = []
    for step, pairs in enumerate(order):
        places = [2 * pair + swapped for pair in pairs for swapped in range(2)]
        input_ids, attention_mask = _padded([rows[place] for place in places], pad)
        loss = F.binary_cross_entropy_with_logits(
            logits(rename(input_ids, 2, content, vocab_size), attention_mask),
            torch.tensor([labels[place] for place in places]),
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 49:
            seconds = time.process_time() - began
            recent = np.mean(losses[-50:])
            print(f"step {step + 1:4d} of {len(order)}  loss {recent:.4f}  {seconds:.0f} s of CPU time", flush=True)
    model.eval()


def _rows(folder: Path, some: Sequence[Comparison]) -> tuple[tuple[NDArray[np.int64], ...], list[float]]:
    """Rows of ids and labels: of each comparison, answer 0 before answer 1 and then the other way round."""
    rows = ask(folder, [example_of(one, 2) for one in some]).rows
    margins = [SHARPNESS * (one.answers[0].overall - one.answers[1].overall) for one in some]
    return rows, [1 / (1 + np.exp(-margin)) for margin in margins for margin in (margin, -margin)]


def _batches(rows: Sequence[NDArray[np.int64]]) -> Iterator[list[int]]:
    """Indices of comparisons, those of like length together: pools are sorted, cut, and their batches shuffled."""
    rng = random.Random(SEED)
    for start in range(0, len(rows) // 2, BATCHES_IN_POOL * PAIRS_IN_BATCH):
        pool = list(range(start, min(start + BATCHES_IN_POOL * PAIRS_IN_BATCH, len(rows) // 2)))
        pool.sort(key=lambda pair: len(rows[2 * pair]))
        cut = [pool[i : i + PAIRS_IN_BATCH] for i in range(0, len(pool) - PAIRS_IN_BATCH + 1, PAIRS_IN_BATCH)]
        rng.shuffle(cut)
        yield from cut


def _padded(rows: Sequence[NDArray[np.int64]], pad: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids and their mask, both int64 [rows, longest]."""
    import torch

    ids = torch.full((len(rows), max(len(row) for row in rows)), pad)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return ids, mask
