"""The checkpoints of docs/int8.md's table, made from the demo or trained like it, and what each is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fitted_head
from activation_ranges import activation_ranges, typical
from asked import Asked, ask, judging_examples, training_examples
from hardening import harden_deberta, harden_decoder
from massive_token import Typical
from rm_calibration.conversations import Example
from rm_export.checkpoint import open_checkpoint
from rm_export.demo import checkpoint_path
from rm_export.exporter import export_checkpoint
from trained_pairs import trained

CALIBRATING, CALIBRATING_PAIRS = 64, 256
"""Comparisons of training questions that pointwise (4 answers each) and pairwise models (2 answers) calibrate on."""

FITTING = 500
"""Those that the scalar head is fitted to."""

MEASURED_ROWS = 40
"""Rows whose activations are measured."""


@dataclass(frozen=True)
class Model:
    """A checkpoint of the table. original: the float function it must still be. calibrating: what its exports see."""

    checkpoint: Path
    original: Path
    asked: Asked
    calibrating: Sequence[Example]


def demo_and_hardened(folder: Path) -> dict[str, Path]:
    """The trained demo, and its hardened copy in a new folder below `folder`."""
    demo = checkpoint_path()
    return {"demo": demo, "hardened": harden_decoder(demo, folder / "hardened", _demo_medians())}


def models(folder: Path, checkpoints: Path, threads: int) -> dict[str, Callable[[], Model]]:
    """Every checkpoint of the table by its name, written below `folder` when it is called for.

    checkpoints: where trained judges are kept.
    """
    return {
        "demo": lambda: Model(checkpoint_path(), checkpoint_path(), *_pointwise(checkpoint_path())),
        "demo, hardened": lambda: _hardened_demo(folder),
        "scalar, hardened": lambda: _hardened_scalar(folder, threads),
        "pair-pm, hardened": lambda: _hardened_judge(folder, trained(checkpoints, "pair-pm"), harden_decoder),
        "PairRM, hardened": lambda: _hardened_judge(folder, trained(checkpoints, "pairrm"), harden_deberta),
    }


def _hardened_demo(folder: Path) -> Model:
    both = demo_and_hardened(folder)
    return Model(both["hardened"], both["demo"], *_pointwise(both["demo"]))


def _hardened_scalar(folder: Path, threads: int) -> Model:
    bundle = export_checkpoint(open_checkpoint(checkpoint_path()), folder / "demo-bundle")
    examples = training_examples(FITTING, 4, seed=99)
    scalar = fitted_head.scalar(folder / "scalar", examples, ask(checkpoint_path(), examples).answers(bundle, threads))
    hardened = harden_decoder(scalar, folder / "scalar-hardened", _demo_medians())
    return Model(hardened, scalar, *_pointwise(scalar))


def _hardened_judge(folder: Path, judge: Path, harden: Callable[[Path, Path], Path]) -> Model:
    hardened = harden(judge, folder / f"{judge.name}-hardened")
    return Model(hardened, judge, ask(judge, judging_examples(2)), training_examples(CALIBRATING_PAIRS, 2))


def _pointwise(checkpoint: Path) -> tuple[Asked, list[Example]]:
    return ask(checkpoint, judging_examples(4)), training_examples(CALIBRATING, 4)


def _demo_medians() -> Typical:
    rows = ask(checkpoint_path(), judging_examples(4)).rows[:MEASURED_ROWS]
    return typical(activation_ranges(checkpoint_path(), rows))
