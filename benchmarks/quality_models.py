"""The checkpoints of docs/int8.md's table, made from the demo or drawn, and what each is asked."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fitted_heads
from activation_ranges import activation_ranges, typical
from asked import Asked, ask, judging_examples, training_examples
from hardening import draw_norm_outliers, harden_deberta, harden_decoder
from rm_calibration.conversations import Example, default_conversations
from rm_export.checkpoint import open_checkpoint
from rm_export.demo import checkpoint_path
from rm_export.exporter import export_checkpoint

sys.path.append(str(Path(__file__).parent.parent / "tests"))

CALIBRATING, CALIBRATING_PAIRS = 64, 256
"""Comparisons of training questions that pointwise (4 answers each) and pairwise models (2 answers) calibrate on."""

FITTING = 500
"""Those that a head is fitted to."""

BUILT_IN = 40
"""Of the built-in conversations, for a model that is not made from the demo: its test tokenizer makes them long."""

MEASURED_ROWS = 40
"""Rows whose activations are measured."""


@dataclass(frozen=True)
class Model:
    """A checkpoint of the table. original: the float function it must still be. calibrating: what its exports see."""

    name: str
    checkpoint: Path
    original: Path
    asked: Asked
    calibrating: Sequence[Example]


def demo_and_hardened(folder: Path) -> dict[str, Path]:
    """The trained demo, and its hardened copy in a new folder below `folder`."""
    demo = checkpoint_path()
    medians = typical(activation_ranges(demo, ask(demo, judging_examples(4)).rows[:MEASURED_ROWS]))
    return {"demo": demo, "hardened": harden_decoder(demo, folder / "hardened", medians)}


def models(folder: Path, threads: int) -> Iterator[Model]:
    """Every checkpoint of the table, written below `folder` one after the other."""
    demo = checkpoint_path()
    asked = ask(demo, judging_examples(4))
    medians = typical(activation_ranges(demo, asked.rows[:MEASURED_ROWS]))
    yield Model("demo", demo, demo, asked, training_examples(CALIBRATING, 4))
    yield Model(
        "demo, hardened",
        harden_decoder(demo, folder / "armorm", medians),
        demo,
        asked,
        training_examples(CALIBRATING, 4),
    )

    bundle = export_checkpoint(open_checkpoint(demo), folder / "demo-bundle")
    examples = training_examples(FITTING, 4, seed=99)
    scalar = fitted_heads.scalar(folder / "scalar", examples, ask(demo, examples).answers(bundle, threads))
    hardened = harden_decoder(scalar, folder / "scalar-hardened", medians)
    yield Model(
        "scalar, hardened", hardened, scalar, ask(scalar, judging_examples(4)), training_examples(CALIBRATING, 4)
    )

    examples = training_examples(FITTING, 2, seed=99)
    scores = ask(demo, examples).answers(bundle, threads).reshape(-1, 2)
    margins = np.column_stack([scores[:, 0] - scores[:, 1], scores[:, 1] - scores[:, 0]]).reshape(-1)
    pair_pm = fitted_heads.pair_pm(folder / "pair-pm", examples, margins)
    hardened = harden_decoder(pair_pm, folder / "pair-pm-hardened")
    yield Model(
        "pair-pm, hardened",
        hardened,
        pair_pm,
        ask(pair_pm, judging_examples(2)),
        training_examples(CALIBRATING_PAIRS, 2),
    )

    import checkpoints

    drawn = draw_norm_outliers(
        checkpoints.pairrm(folder / "pairrm", hidden_size=128, intermediate_size=512, num_hidden_layers=4)
    )
    hardened = harden_deberta(drawn, folder / "pairrm-hardened")
    yield Model(
        "PairRM, drawn, hardened", hardened, drawn, ask(drawn, judging_examples(2)), default_conversations()[:BUILT_IN]
    )
