"""Every pair of the answers to one prompt: the probability that one is better than the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from rm_runtime.errors import RewardModelError
from rm_runtime.results import Comparison, Ranking, Truncation, truncated_json
from rm_runtime.tournament import CONTESTS

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Preferences:
    """Answers compared with each other, every pair in both orders.

    ranking: as the model's `rank` makes it. probabilities: [n][n], that the row's answer is better than the column's,
    0.5 on the diagonal. tokens: for each answer, ids of the longest prompt it took part in. comparisons: the pairwise
    preference model's, of each pair in the order of itertools.combinations.
    """

    ranking: Ranking
    probabilities: tuple[tuple[float, ...], ...]
    tokens: tuple[int, ...]
    comparisons: tuple[Comparison, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The JSON of the ranking, of the comparison if there is one, and what was asked for beyond them."""
        cuts = self.ranking.truncation or ((),) * len(self.tokens)
        answers = [{"tokens": count, **truncated_json(cut)} for count, cut in zip(self.tokens, cuts, strict=True)]
        return {
            **self.ranking.as_json(),
            **(self.comparisons[0].as_json() if len(self.comparisons) == 1 else {}),
            "answers": answers,
            "probabilities": [list(row) for row in self.probabilities],
        }


def preferences_of_comparisons(
    count: int, comparisons: Sequence[Comparison | RewardModelError]
) -> Preferences | RewardModelError:
    """Of `count` answers, compared in the order of itertools.combinations; the knock-out is played with what they say.

    The error of the first pair that has one, naming it.
    """
    probabilities = [[0.5] * count for _ in range(count)]
    tokens = [0] * count
    cuts: list[dict[Truncation, None]] = [{} for _ in range(count)]
    compared = []
    for (first, second), answer in zip(combinations(range(count), 2), comparisons, strict=True):
        if isinstance(answer, RewardModelError):
            return type(answer)(f"responses {first} and {second}: {answer}")
        compared.append(answer)
        probabilities[first][second] = answer.probability
        probabilities[second][first] = 1 - answer.probability
        for response in (first, second):
            tokens[response] = max(tokens[response], answer.tokens)
            cuts[response].update(dict.fromkeys(answer.truncation))
    contest = CONTESTS["tournament"](count)
    while matches := contest.matches():
        contest.play([probabilities[first][second] for first, second in matches])
    ranking = Ranking.from_scores(contest.scores, [tuple(of_response) for of_response in cuts])
    return Preferences(ranking, tuple(map(tuple, probabilities)), tuple(tokens), tuple(compared))


def preferences_of_logits(matrix: NDArray[Any], ranking: Ranking, tokens: Sequence[int]) -> Preferences:
    """Of answers whose logits f(i, j) are matrix[i, j]: [n, n].

    A probability is the sigmoid of the mean of both orders, (f(i, j) - f(j, i)) / 2: PairRM was trained with the
    log-loss of its logits' sigmoid (LLM-Blender, arXiv 2306.02561), though its authors' code applies none.
    """
    margins = (matrix - matrix.T) / 2
    probabilities = tuple(tuple((1 + math.tanh(margin / 2)) / 2 for margin in row) for row in margins.tolist())
    return Preferences(ranking, probabilities, tuple(tokens))
