"""The labels of a sequence classifier's head, and which of them is the score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rm_export.checkpoint import Checkpoint
from rm_export.errors import CheckpointError
from rm_export.graph import positions
from rm_export.graph.module import Op, Value
from rm_export.options import Options


@dataclass(frozen=True)
class Labels:
    """A head of `count` labels, of which number `scored` is the score."""

    count: int
    scored: int

    @classmethod
    def of_head(cls, checkpoint: Checkpoint, weight: str, options: Options) -> Labels:
        """weight: name of the head's [labels, hidden] tensor. Raises CheckpointError for a label outside it."""
        count = checkpoint.tensors[weight].dims[0]
        if not 0 <= options.score_label < count:
            raise CheckpointError(f"--score-label {options.score_label} is outside the head's {count} labels")
        return cls(count, options.score_label)

    @property
    def outputs(self) -> Mapping[str, tuple[str | int, ...]]:
        """The graph's outputs: `score` [batch]; with several labels also `logits` [batch, labels]."""
        score: dict[str, tuple[str | int, ...]] = {"score": ("batch",)}
        return score if self.count == 1 else score | {"logits": ("batch", self.count)}

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What the manifest tells of them."""
        return {"score_label": self.scored} if self.count > 1 else {}

    def values(self, op: Op, logits: Value, valid: Value) -> dict[str, Value]:
        """logits [batch, labels], valid [batch] bool -> `outputs` by name, NaN in rows that are not valid."""
        score = op.Gather(logits, self.scored, axis=1)
        values = {"score": positions.nan_unless(op, valid, score, 1)}
        if self.count > 1:
            values["logits"] = positions.nan_unless(op, valid, logits, 2)
        return values
