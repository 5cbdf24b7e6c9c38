"""Two ways to score the same rows, compared: how far apart the numbers are, and whether the order is kept."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

TIE = 1e-4
"""Reference margins up to this, in standard deviations, are ties: float32 itself does not decide them.

Two float32 evaluations of tiny models that only sum in another order differ by about 1e-5; deep ones by more.
"""

CLEAR = 0.1
"""Reference margins beyond this, in standard deviations, are clear preferences."""

_WORST = 10
_BLOCK = 1 << 20
"""Pairs looked at together."""


@dataclass(frozen=True)
class Flips:
    """Pairs of rows that the candidate orders otherwise than the reference (a tie of the candidate counts).

    pairs: those the reference tells apart (margin beyond TIE); flips: of these, ordered otherwise.
    clear_pairs, clear_flips: the same where the reference's margin is beyond CLEAR.
    widest: the largest reference margin that was flipped, in standard deviations; 0 without a flip.
    """

    pairs: int = 0
    flips: int = 0
    clear_pairs: int = 0
    clear_flips: int = 0
    widest: float = 0.0

    @property
    def rate(self) -> float:
        """flips / pairs, 0 without a pair."""
        return self.flips / self.pairs if self.pairs else 0.0

    @property
    def clear_rate(self) -> float:
        """clear_flips / clear_pairs, 0 without a clear pair."""
        return self.clear_flips / self.clear_pairs if self.clear_pairs else 0.0

    def __add__(self, other: Flips) -> Flips:
        return Flips(
            self.pairs + other.pairs,
            self.flips + other.flips,
            self.clear_pairs + other.clear_pairs,
            self.clear_flips + other.clear_flips,
            max(self.widest, other.widest),
        )


@dataclass(frozen=True)
class RowError:
    """One row's two scores."""

    row: int
    reference: float
    candidate: float

    @property
    def error(self) -> float:
        """candidate - reference."""
        return self.candidate - self.reference


@dataclass(frozen=True)
class Agreement:
    """How well candidate scores agree with reference scores of the same n rows.

    std: standard deviation of the reference scores, the unit in which the relative errors are; they, and the
    correlations, are None where they mean nothing (a reference without spread).
    max_error, mean_error: of |candidate - reference|, in score units.
    order: over all pairs of rows. worst: the rows with the largest errors, largest first.
    """

    n: int
    std: float
    max_error: float
    mean_error: float
    spearman: float | None
    pearson: float | None
    order: Flips
    worst: tuple[RowError, ...]

    @property
    def relative_max_error(self) -> float | None:
        """max_error / std."""
        return self.max_error / self.std if self.std else None

    @property
    def relative_mean_error(self) -> float | None:
        """mean_error / std."""
        return self.mean_error / self.std if self.std else None

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            "n": self.n,
            "std": self.std,
            "max_error": self.max_error,
            "mean_error": self.mean_error,
            "relative_max_error": self.relative_max_error,
            "relative_mean_error": self.relative_mean_error,
            "spearman": self.spearman,
            "pearson": self.pearson,
            "order": asdict(self.order),
            "worst": [{**asdict(row), "error": row.error} for row in self.worst],
        }


def compare_scores(reference: ArrayLike, candidate: ArrayLike) -> Agreement:
    """Compare two score vectors [n] of the same rows, n >= 1. O(n^2) time in O(n) memory.

    Raises ValueError unless both are finite vectors of one length.
    """
    expected, actual = _vectors(reference, candidate)
    errors = np.abs(actual - expected)
    worst = np.argsort(-errors, kind="stable")[:_WORST]
    return Agreement(
        n=len(expected),
        std=spread(expected),
        max_error=float(errors.max()),
        mean_error=float(errors.mean()),
        spearman=_correlation(average_ranks(expected), average_ranks(actual)),
        pearson=_correlation(expected, actual),
        order=_count_flips(_all_margins(expected, actual), spread(expected)),
        worst=tuple(RowError(int(row), float(expected[row]), float(actual[row])) for row in worst),
    )


def compare_within_groups(
    reference: ArrayLike, candidate: ArrayLike, groups: Sequence[int] | NDArray[np.integer[Any]]
) -> Flips:
    """Flips among rows of the same group only: answers to the same prompt. Margins count in std of all rows.

    reference, candidate, groups: [n]. Raises ValueError as compare_scores.
    """
    expected, actual = _vectors(reference, candidate)
    labels = np.asarray(groups)
    if labels.shape != expected.shape:
        raise ValueError(f"{labels.shape} groups for {expected.shape} scores")
    order = np.argsort(labels, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    flips = Flips()
    for rows in members:
        flips += _count_flips(_all_margins(expected[rows], actual[rows]), spread(expected))
    return flips


def compare_margins(reference: ArrayLike, candidate: ArrayLike) -> Flips:
    """Flips of signs: margins [n] that say by how much a first answer is preferred to a second.

    The unit is the standard deviation of the reference margins about 0. Raises ValueError as compare_scores.
    """
    expected, actual = _vectors(reference, candidate)
    return _count_flips([(expected, actual)], float(np.sqrt(np.mean(expected**2))))


def rate_interval(rate: float, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a share that was `rate` of `trials` independent ones; (0, 1) without a trial.

    Wilson's score interval (JASA 22, 1927): right for rates of 0 too, where it ends at 3.8 / (trials + 3.8).
    """
    if not trials:
        return 0.0, 1.0
    z2 = 1.959964**2 / trials
    middle = (rate + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * (rate * (1 - rate) + z2 / 4)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def spread(scores: NDArray[np.float64]) -> float:
    """Standard deviation (population), exactly 0 for equal scores."""
    return 0.0 if np.ptp(scores) == 0 else float(scores.std())


def average_ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks 1..n in ascending order; equal scores share the mean of their ranks."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return means


def _vectors(reference: ArrayLike, candidate: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    expected, actual = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    if expected.ndim != 1 or expected.shape != actual.shape or not len(expected):
        raise ValueError(f"scores of shapes {expected.shape} and {actual.shape}; two vectors of one length >= 1")
    if not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        raise ValueError("scores hold NaN or infinity; leave out the rows that could not be scored")
    return expected, actual


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Pearson's, None where a side has no spread."""
    if not (spread(one) and spread(other)):
        return None
    one, other = ((side - side.mean()) / spread(side) for side in (one, other))
    value = float(one @ other) / math.sqrt(float(one @ one) * float(other @ other))
    return min(1.0, max(-1.0, value))


def _all_margins(
    expected: NDArray[np.float64], actual: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Margins row i - row j of both sides for all i < j, in blocks of rows."""
    n = len(expected)
    rows = max(1, _BLOCK // n)
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        later = np.arange(start, n) > np.arange(start, stop)[:, None]
        yield (
            (expected[start:stop, None] - expected[start:])[later],
            (actual[start:stop, None] - actual[start:])[later],
        )


def _count_flips(
    margins: Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]
    | Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    unit: float,
) -> Flips:
    flips = Flips()
    for expected, actual in margins:
        sizes = np.abs(expected)
        told_apart = sizes > TIE * unit
        flipped = told_apart & (np.sign(expected) != np.sign(actual))
        clear = sizes > CLEAR * unit
        flips += Flips(
            pairs=int(told_apart.sum()),
            flips=int(flipped.sum()),
            clear_pairs=int(clear.sum()),
            clear_flips=int((clear & flipped).sum()),
            widest=float(sizes[flipped].max(initial=0.0)) / unit if unit else 0.0,
        )
    return flips
