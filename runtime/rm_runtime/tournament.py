"""Who meets whom when answers can only be compared in pairs, and what scores follow.

The bracket is ours to define: the authors of the pairwise models recommend a tournament and publish none.
KnockOut takes n - 1 comparisons in ceil(log2 n) rounds, RoundRobin n(n - 1) / 2 in one. Both give one score
an answer, from which its rank follows (equal scores share a rank). Of two answers both score the two
probabilities; a single answer, which nothing can be compared with, scores 1.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

Match = tuple[int, int]


class Contest(Protocol):
    """Compare what `matches` names, `play` the outcomes, until it names nothing; then `scores` are final."""

    scores: list[float]

    def matches(self) -> list[Match]:
        """Pairs of answers, by index, that can be compared now; of a pair the first came earlier."""

    def play(self, probabilities: Sequence[float]) -> None:
        """Enter, for each of `matches` in its order, the probability that its first answer is the better."""


class KnockOut:
    """A knock-out in input order.

    Every round pairs neighbours, and winners keep their order. Where the number of answers is no power of
    two, the last ones skip the first round; nobody skips another. A tie (exactly 0.5) is won by the earlier
    answer.

    An answer's score is the number of rounds it survived, a skipped one included; the two finalists add their
    probability in the final. So the losers of one round tie, whoever their opponents were, and a tied final
    is a tie.
    """

    def __init__(self, answers: int) -> None:
        self.scores = [0.0] * answers if answers > 1 else [1.0] * answers
        self._alive = list(range(answers))

    def matches(self) -> list[Match]:
        alive = self._alive
        if len(alive) < 2:
            return []
        next_round = 1 << ((len(alive) - 1).bit_length() - 1)  # the largest power of two below the number alive
        return [(alive[2 * match], alive[2 * match + 1]) for match in range(len(alive) - next_round)]

    def play(self, probabilities: Sequence[float]) -> None:
        matches = self.matches()
        if len(self._alive) == 2:
            ((first, second),), (probability,) = matches, probabilities
            self.scores[first] += probability
            self.scores[second] += 1 - probability
            self._alive = []
            return
        winners = [
            first if probability >= 0.5 else second
            for (first, second), probability in zip(matches, probabilities, strict=True)
        ]
        self._alive = winners + self._alive[2 * len(matches) :]
        for survivor in self._alive:
            self.scores[survivor] += 1


class RoundRobin:
    """Everyone meets everyone once; a score is the mean probability of being the better of the two."""

    def __init__(self, answers: int) -> None:
        self.scores = [0.0] * answers if answers > 1 else [1.0] * answers
        self._open = list(combinations(range(answers), 2))

    def matches(self) -> list[Match]:
        return self._open

    def play(self, probabilities: Sequence[float]) -> None:
        others = len(self.scores) - 1
        for (first, second), probability in zip(self._open, probabilities, strict=True):
            self.scores[first] += probability / others
            self.scores[second] += (1 - probability) / others
        self._open = []


CONTESTS: dict[str, type[KnockOut] | type[RoundRobin]] = {"tournament": KnockOut, "round-robin": RoundRobin}
