"""The records that scoring returns."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_runtime.results import (
    HELPSTEER,
    ArmoScore,
    Comparison,
    DPAScore,
    LogitsScore,
    Ranking,
    Score,
    Truncation,
    competition_ranks,
)

DPA_NAMES = (
    *(f"helpsteer-{name}" for name in HELPSTEER),
    "uf-overall",
    "uf-if",
    "uf-truth",
    "uf-honest",
    "uf-help",
)
DPA_CARD = (
    68.99269,
    69.62718,
    76.23071,
    33.48785,
    35.853596,
    63.833366,
    55.58917,
    68.7175,
    59.552124,
    46.465595,
)
CUT = Truncation(3, "left")


def dpa_score() -> DPAScore:
    """The sample of the DPA reward model's card."""
    return DPAScore(DPA_CARD[0], rewards=dict(zip(DPA_NAMES, DPA_CARD, strict=True)))


def armo_score() -> ArmoScore:
    names = [*HELPSTEER, "safety", "style"]
    rewards = (0.65625, 0.671875, 0.796875, 0.376953125, 0.359375, 0.5, 0.25)
    coefficients = (0.1, 0.05, 0.0, 0.2, -0.3, 0.05, -0.2)
    return ArmoScore(
        1.0,
        rewards=dict(zip(names, rewards, strict=True)),
        gating=dict.fromkeys(names, 1 / 7),
        coefficients=dict(zip(names, coefficients, strict=True)),
    )


@pytest.mark.parametrize(
    ("scores", "ranks"),
    [
        ([0.5], (1,)),
        ([1.0, 3.0, 2.0], (3, 1, 2)),
        ([2.0, 2.0, 1.0], (1, 1, 3)),
        ([1.0, 2.0, 2.0, 2.0, 0.0], (4, 1, 1, 1, 5)),
        ([0.0, -0.0], (1, 1)),
    ],
)
def test_equal_scores_share_the_better_rank_and_skip_the_next(scores: list[float], ranks: tuple[int, ...]) -> None:
    assert competition_ranks(scores) == ranks


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=20))
def test_ranks_order_answers_as_their_scores_do(scores: list[float]) -> None:
    ranking = Ranking.from_scores(scores)
    assert min(ranking.ranks) == 1
    assert ranking.best == scores.index(max(scores))
    for rank, score in zip(ranking.ranks, scores, strict=True):
        assert rank == 1 + sum(other > score for other in scores)


def test_a_ranking_prints_ranks_and_scores() -> None:
    assert Ranking.from_scores([1.5, 2.5]).as_json() == {"ranks": [2, 1], "scores": [1.5, 2.5]}


def test_a_score_prints_only_the_score_unless_its_prompt_was_cut() -> None:
    assert Score(0.25, 7).as_json() == {"score": 0.25}
    assert Score(0.25, 7, (CUT,)).as_json() == {
        "score": 0.25,
        "truncated": [{"tokens": 3, "side": "left", "part": "conversation"}],
    }
    assert str(CUT) == "3 tokens cut from the left of the conversation"


def test_a_head_with_several_labels_prints_all_of_them() -> None:
    assert LogitsScore(2.0, logits=(1.0, 2.0)).as_json() == {"score": 2.0, "logits": [1.0, 2.0]}


def test_armorm_helpsteer_is_five_times_the_reward_minus_a_half() -> None:
    # the bf16 anchors of semantics 1.4
    assert list(armo_score().helpsteer) == list(HELPSTEER)
    assert list(armo_score().helpsteer.values()) == pytest.approx([2.78125, 2.859375, 3.484375, 1.3847656, 1.296875])


def test_the_top_objectives_are_those_with_the_largest_coefficient_of_either_sign() -> None:
    assert armo_score().top(3) == [("verbosity", -0.3), ("complexity", 0.2), ("style", -0.2)]
    assert len(armo_score().top(100)) == 7
    assert armo_score().top(0) == []


def test_an_armorm_score_prints_its_explanation_in_the_order_of_the_objectives() -> None:
    line = armo_score().as_json()
    assert list(line) == ["score", "rewards", "gating", "coefficients"]
    assert line["rewards"][:2] == [0.65625, 0.671875]
    json.dumps(line)


def test_dpa_helpsteer_is_the_cards_own_example() -> None:
    expected = [2.9496346, 2.981359, 3.3115356, 1.1743925, 1.2926798]
    assert list(dpa_score().helpsteer.values()) == pytest.approx(expected, abs=1e-6)
    assert list(dpa_score().as_json()) == ["score", "rewards", "helpsteer"]


def test_the_reward_along_a_direction_is_the_dot_product_with_its_unit_vector() -> None:
    score = dpa_score()
    assert score.along(0) == pytest.approx(DPA_CARD[0])
    assert score.along(90) == pytest.approx(DPA_CARD[4])
    angle = math.radians(-15)
    assert score.along(-15) == pytest.approx(math.cos(angle) * DPA_CARD[0] + math.sin(angle) * DPA_CARD[4])
    assert score.along(0, axes=("uf-help", "uf-honest")) == pytest.approx(DPA_CARD[9])
    with pytest.raises(KeyError):
        score.along(0, axes=("nonsense", "uf-help"))


def test_a_comparison_prints_both_orders() -> None:
    comparison = Comparison(0.6, (0.7, 0.5), ((1.0, 0.0), (2.0, 3.0)))
    assert comparison.as_json() == {
        "probability": 0.6,
        "order_probabilities": [0.7, 0.5],
        "logits": [[1.0, 0.0], [2.0, 3.0]],
    }


def test_results_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Score(1.0).score = 2.0  # type: ignore[misc]  # the mistake under test
