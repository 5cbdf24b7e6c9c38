"""What was measured against the reference, as frozen records: the contents of parity.json and its summary."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rm_calibration.comparison import rate_interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rm_calibration.comparison import Agreement, Flips


@dataclass(frozen=True)
class ScoredRow:
    """One row of ids that both sides were given.

    line: number of its example, from 0. responses: which of the example's responses were scored: one, for
    pairwise families two in the order the model saw them, none if the example is a whole conversation.
    tokens: ids in the row; cut: ids lost to the length limit. reference, bundle: the scores, None where that
    side could not score it.
    """

    line: int
    responses: tuple[int, ...]
    tokens: int
    cut: int
    reference: float | None
    bundle: float | None


@dataclass(frozen=True)
class OutputError:
    """Errors of one output, or one objective of it, over the rows that both sides scored.

    std: standard deviation of the reference's values; max_error, mean_error: of |bundle - reference|.
    """

    output: str
    objective: str | None
    std: float
    max_error: float
    mean_error: float


@dataclass(frozen=True)
class LengthBucket:
    """Score errors of the rows with `shortest` to `longest` ids, both included."""

    shortest: int
    longest: int
    rows: int
    max_error: float
    mean_error: float


@dataclass(frozen=True)
class Parity:
    """A bundle compared with its float32 reference on the very same token ids.

    family, precision, target: of the bundle. engine: what ran it. source: the checkpoint's id. versions: of
    the packages that took part. examples: how many prompts or conversations were compared. rows: in order.
    agreement: of `score`. preferences: over pairs of answers to the same prompt; a pairwise family is asked
    in both orders, and its preference is the difference of the two scores. pairwise: whether it is one.
    outputs: errors of every output and objective. lengths: errors by row length. not_rendered: refusals of
    the prompt itself (a role the template does not know, ...), reason -> number of rows.
    """

    family: str
    precision: str
    target: str
    engine: str
    source: str
    versions: Mapping[str, str]
    examples: int
    pairwise: bool
    rows: tuple[ScoredRow, ...]
    agreement: Agreement
    preferences: Flips
    outputs: tuple[OutputError, ...]
    lengths: tuple[LengthBucket, ...]
    not_rendered: Mapping[str, int]
    reference: str = "the float32 PyTorch reference"

    @property
    def truncated(self) -> int:
        """Rows that lost ids to the length limit."""
        return sum(row.cut > 0 for row in self.rows)

    @property
    def refused_by_both(self) -> int:
        """Rows that neither side scores."""
        return sum(row.reference is None and row.bundle is None for row in self.rows)

    @property
    def refused_by_one(self) -> int:
        """Rows that exactly one side scores: always a fault."""
        return sum((row.reference is None) != (row.bundle is None) for row in self.rows)

    @property
    def order(self) -> Flips:
        """The pairs of the verdict: all pairs of rows, for pairwise families the preferences."""
        return self.preferences if self.pairwise else self.agreement.order

    @property
    def clear_flip_interval(self) -> tuple[float, float]:
        """95 % interval of the rate of clear flips. Pairs that share rows do not count as independent: rows do."""
        trials = self.order.clear_pairs if self.pairwise else min(self.agreement.n, self.order.clear_pairs)
        return rate_interval(self.order.clear_rate, trials)

    @property
    def same_decisions(self) -> bool:
        """No clear preference is flipped, and both sides refuse the same rows."""
        return not (self.order.clear_flips or self.preferences.clear_flips or self.refused_by_one)

    @property
    def verdict(self) -> str:
        """One sentence that says it all."""
        what = "preferences decided" if self.pairwise else "pairs ranked"
        sentence = f"{self.order.flips:,} of {self.order.pairs:,} {what} differently"
        if self.refused_by_one:
            rows = "row is" if self.refused_by_one == 1 else "rows are"
            sentence += f", and {self.refused_by_one:,} {rows} scored by one side only"
        return sentence

    def as_json(self) -> dict[str, Any]:
        """parity.json."""
        return {
            "verdict": self.verdict,
            "same_decisions": self.same_decisions,
            "family": self.family,
            "precision": self.precision,
            "target": self.target,
            "engine": self.engine,
            "source": self.source,
            "versions": dict(self.versions),
            "reference": self.reference,
            "examples": self.examples,
            "agreement": self.agreement.as_json(),
            "clear_flip_interval": list(self.clear_flip_interval),
            "preferences": asdict(self.preferences),
            "outputs": [asdict(output) for output in self.outputs],
            "lengths": [asdict(bucket) for bucket in self.lengths],
            "truncated": self.truncated,
            "refused_by_both": self.refused_by_both,
            "refused_by_one": self.refused_by_one,
            "not_rendered": dict(self.not_rendered),
            "rows": [asdict(row) for row in self.rows],
        }

    def to_json(self) -> str:
        """The text of parity.json; one row a line would be longer than it is worth."""
        return json.dumps(self.as_json(), ensure_ascii=False, allow_nan=False) + "\n"

    def summary(self) -> dict[str, Any]:
        """What bundle.json tells of it."""
        return {
            "verdict": self.verdict,
            "same_decisions": self.same_decisions,
            "engine": self.engine,
            "examples": self.examples,
            "rows": self.agreement.n,
            "pairs": self.order.pairs,
            "flips": self.order.flips,
            "preference_pairs": self.preferences.pairs,
            "preference_flips": self.preferences.flips,
            "clear_flip_rate": self.order.clear_rate,
            "clear_flip_interval": list(self.clear_flip_interval),
            "max_error": self.agreement.max_error,
            "max_error_in_std": self.agreement.relative_max_error,
            "spearman": self.agreement.spearman,
        }
