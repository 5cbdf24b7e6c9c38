"""What scoring returns: plain frozen records that know how to print themselves as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""The five HelpSteer attributes, in the order of outputs 0 to 4 of ArmoRM and the DPA reward model."""


@dataclass(frozen=True)
class Truncation:
    """What a prompt lost to the length limit.

    tokens: how many token ids were cut; side: "left" or "right", the end they were cut from;
    part: what was cut ("conversation", or PairRM's "source" / "candidate").
    """

    tokens: int
    side: str
    part: str = "conversation"

    def __str__(self) -> str:
        return f"{self.tokens} tokens cut from the {self.side} of the {self.part}"


@dataclass(frozen=True)
class Score:
    """The score of one conversation.

    score: the model's scalar (unbounded; only its order has a meaning across answers to one prompt);
    tokens: ids fed to the graph; truncation: what was cut before that, empty when nothing was.
    """

    score: float
    tokens: int = 0
    truncation: tuple[Truncation, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The JSON line of this score (design: one object a conversation)."""
        return {"score": self.score, **truncated_json(self.truncation)}


@dataclass(frozen=True)
class LogitsScore(Score):
    """A score of a head with several labels: `logits` holds all of them, `score` is the chosen one."""

    logits: tuple[float, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {**super().as_json(), "logits": list(self.logits)}


@dataclass(frozen=True)
class ArmoScore(Score):
    """ArmoRM's score with its explanation (model card of RLHFlow/ArmoRM-Llama3-8B-v0.1).

    rewards, gating, coefficients: 19 values by objective name. `coefficients` = gating @ T^T, so that
    sum(rewards * coefficients) == score.
    """

    rewards: Mapping[str, float] = field(default_factory=dict)
    gating: Mapping[str, float] = field(default_factory=dict)
    coefficients: Mapping[str, float] = field(default_factory=dict)

    def top(self, k: int = 3) -> list[tuple[str, float]]:
        """The k objectives with the largest |coefficient|, largest first, with their signed coefficient."""
        ordered = sorted(self.coefficients.items(), key=lambda item: -abs(item[1]))
        return ordered[:k]

    @property
    def helpsteer(self) -> dict[str, float]:
        """The five HelpSteer attributes on their own 0-4 scale: reward * 5 - 0.5 (model card)."""
        return {name: reward * 5 - 0.5 for name, reward in zip(HELPSTEER, self.rewards.values(), strict=False)}

    def as_json(self) -> dict[str, Any]:
        return {
            **super().as_json(),
            "rewards": list(self.rewards.values()),
            "gating": list(self.gating.values()),
            "coefficients": list(self.coefficients.values()),
        }


@dataclass(frozen=True)
class DPAScore(Score):
    """The ten objectives of the DPA reward model, on their 0-100 scale; `score` is the first of them.

    Source: model card of RLHFlow/RewardModel-Mistral-7B-for-DPA-v1.
    """

    rewards: Mapping[str, float] = field(default_factory=dict)

    @property
    def helpsteer(self) -> dict[str, float]:
        """The five HelpSteer attributes on their own 0-4 scale: (reward - 10) / 20 (model card)."""
        return {name: (reward - 10) / 20 for name, reward in zip(HELPSTEER, self.rewards.values(), strict=False)}

    def along(self, degrees: float, axes: tuple[str, str] = ("helpsteer-helpfulness", "helpsteer-verbosity")) -> float:
        """The reward along a user's direction: cos(t) * rewards[axes[0]] + sin(t) * rewards[axes[1]].

        degrees: the angle t; the paper's users lie within 45 degrees. Which two outputs span the plane is
        not documented for this checkpoint, hence the parameter; the default takes HelpSteer's own two.
        """
        angle = math.radians(degrees)
        return math.cos(angle) * self.rewards[axes[0]] + math.sin(angle) * self.rewards[axes[1]]

    def as_json(self) -> dict[str, Any]:
        return {
            **super().as_json(),
            "rewards": list(self.rewards.values()),
            "helpsteer": list(self.helpsteer.values()),
        }


@dataclass(frozen=True)
class Ranking:
    """Several answers to one prompt, compared.

    ranks: 1 = best, in the order the answers were given; equal scores share the better rank and the next
    rank is skipped (1, 1, 3). scores: one per answer, higher is better; their unit is the family's own.
    """

    ranks: tuple[int, ...]
    scores: tuple[float, ...]
    truncation: tuple[tuple[Truncation, ...], ...] = ()

    @property
    def best(self) -> int:
        """Index of the best answer (the first of equals)."""
        return self.ranks.index(1)

    @classmethod
    def from_scores(cls, scores: Sequence[float], truncation: Sequence[tuple[Truncation, ...]] = ()) -> Ranking:
        return cls(competition_ranks(scores), tuple(float(s) for s in scores), tuple(truncation))

    def as_json(self) -> dict[str, Any]:
        line: dict[str, Any] = {"ranks": list(self.ranks), "scores": list(self.scores)}
        if any(self.truncation):
            line["truncated"] = [truncated_json(cuts).get("truncated", []) for cuts in self.truncation]
        return line


@dataclass(frozen=True)
class Comparison:
    """Two answers compared by the pairwise preference model, asked in both orders.

    probability: that `a` is the better answer, the mean over both orders; order_probabilities: the same with
    `a` first and with `a` second; logits: [[A, B], [A, B]] of the two prompts as the model saw them (in the
    second, "A" is answer b). tokens: ids of the longer of the two prompts.
    """

    probability: float
    order_probabilities: tuple[float, float]
    logits: tuple[tuple[float, float], tuple[float, float]]
    truncation: tuple[Truncation, ...] = ()
    tokens: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "probability": self.probability,
            "order_probabilities": list(self.order_probabilities),
            "logits": [list(pair) for pair in self.logits],
            **truncated_json(self.truncation),
        }


def truncated_json(truncation: Sequence[Truncation]) -> dict[str, Any]:
    """{"truncated": [...]} for a JSON line, {} if nothing was cut."""
    if not truncation:
        return {}
    return {"truncated": [{"tokens": cut.tokens, "side": cut.side, "part": cut.part} for cut in truncation]}


def competition_ranks(scores: Sequence[float]) -> tuple[int, ...]:
    """Ranks by descending score, 1-based; ties share the best rank and skip the following (1, 1, 3)."""
    return tuple(1 + sum(other > score for other in scores) for score in scores)
