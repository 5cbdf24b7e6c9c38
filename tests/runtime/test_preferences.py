"""Every pair of the answers to one prompt, by both families that compare."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest

import checkpoints
import rm_runtime
from fake_models import pair_pm
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_runtime.errors import ScoringError, UnscorableError
from rm_runtime.families.pair_pm import sigmoid
from rm_runtime.families.pairrm import PairRM
from rm_runtime.results import Truncation

PROMPT = [{"role": "user", "content": "Which one?"}]
CIRCLE = {"rock": "scissors", "scissors": "paper", "paper": "rock"}
"""Who beats whom."""


def circular(a: str, b: str) -> tuple[float, float]:
    """Logits of a model whose preferences have no best answer, and that likes the place A a little more."""
    return (2.0 if CIRCLE.get(a) == b else 0.1, 1.0 if CIRCLE.get(b) == a else 0.0)


def test_probabilities_are_those_of_compare_and_the_ranking_is_that_of_rank() -> None:
    model = pair_pm(circular)
    answers = ["rock", "paper", "scissors", "something", "paper"]
    (found,) = model.preferences_many([(PROMPT, answers)])
    for i, j in combinations(range(5), 2):
        assert found.probabilities[i][j] == model.compare(PROMPT, answers[i], answers[j]).probability
        assert found.probabilities[j][i] == 1 - found.probabilities[i][j]
    assert [found.probabilities[i][i] for i in range(5)] == [0.5] * 5
    assert found.ranking == model.rank(PROMPT, answers)


def test_two_answers_keep_what_their_comparison_says() -> None:
    model = pair_pm(circular)
    (found,) = model.preferences_many([(PROMPT, ["rock", "paper"])])
    compared = model.compare(PROMPT, "rock", "paper").as_json()
    assert {key: found.as_json()[key] for key in compared} == compared


def test_tokens_are_those_of_the_longest_prompt_an_answer_is_in() -> None:
    model = pair_pm(circular)
    answers = ["a", "b " * 30, "c " * 50]
    (found,) = model.preferences_many([(PROMPT, answers)])
    lengths = {(i, j): model.compare(PROMPT, answers[i], answers[j]).tokens for i, j in combinations(range(3), 2)}
    assert found.tokens == tuple(max(length for pair, length in lengths.items() if i in pair) for i in range(3))
    assert found.tokens[0] < found.tokens[1] == found.tokens[2]


def test_a_pair_without_a_number_fails_its_own_prompt_and_is_named() -> None:
    model = pair_pm(lambda a, b: (math.nan if "broken" in (a, b) else 1.0, 0.0))
    groups = [(PROMPT, ["x", "broken", "z"]), (PROMPT, []), (PROMPT, ["x", "y"])]
    broken, refused, fine = model.preferences_many(groups, errors="return")
    assert isinstance(broken, UnscorableError)
    assert str(broken).startswith("responses 0 and 1: ")
    assert "at least one" in str(refused)
    assert fine.probabilities[0][1] == 0.5
    with pytest.raises(ScoringError, match=r"row 0: responses 0 and 1: .*; row 1: "):
        model.preferences_many(groups)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> PairRM:
    folder = tmp_path_factory.mktemp("pairrm")
    bundle = export_checkpoint(open_checkpoint(checkpoints.pairrm(folder / "checkpoint")), folder / "bundle")
    loaded: Any = rm_runtime.load(bundle, threads=1)
    return loaded


ANSWERS = ["Rain.", "It was the moon, and what it does to water.", "Rain."]


def test_pairrms_probability_is_the_sigmoid_of_both_orders_mean(ranker: PairRM) -> None:
    found = ranker.preferences(PROMPT, ANSWERS)
    assert found.ranking == ranker.rank(PROMPT, ANSWERS)
    question = str(PROMPT[0]["content"])
    (both,) = ranker.compare([question], [ANSWERS[0]], [ANSWERS[1]], return_logits=True)
    assert found.probabilities[0][1] == pytest.approx(sigmoid(float(both) / 2), rel=1e-6)
    assert found.probabilities[0][2] == 0.5, "equal answers tie"
    matrix = np.array(found.probabilities)
    assert matrix + matrix.T == pytest.approx(np.ones((3, 3)))
    as_text = ranker.preferences(question, ANSWERS)
    assert as_text.probabilities == found.probabilities


def test_pairrms_tokens_and_cuts_are_those_of_its_rows(ranker: PairRM) -> None:
    long = "The tide comes in. " * 600
    found = ranker.preferences(PROMPT, [*ANSWERS, long])
    assert found.ranking.truncation[0] == ()
    (cut,) = found.ranking.truncation[3]
    assert isinstance(cut, Truncation)
    assert found.tokens[3] == max(found.tokens)
    answers = found.as_json()["answers"]
    assert answers[0] == {"tokens": found.tokens[0]}
    assert answers[3]["truncated"] == [{"tokens": cut.tokens, "side": "right", "part": "candidate"}]
    assert ranker.preferences(PROMPT, ["alone"]).tokens == (0,)
