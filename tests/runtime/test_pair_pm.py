"""The pairwise preference model: comparisons, tournaments, errors."""

from __future__ import annotations

import dataclasses
import math
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_models import CHAT, PAIR, pair_pm
from rm_runtime.errors import BundleError, PromptError, RequestError, ScoringError, UnscorableError
from rm_runtime.families.pair_pm import sigmoid
from rm_runtime.tournament import CONTESTS, KnockOut, RoundRobin

PROMPT = [{"role": "user", "content": "Which one?"}]


def by_number(bias: float = 0.3, scale: float = 0.05) -> Any:
    """A model that likes answers by the number in them, and the place A a little more than B."""
    return pair_pm(lambda a, b: (scale * float(a) + bias, scale * float(b)))


def forwards(model: Any) -> int:
    return sum(model.engine.batches)


def test_a_probability_is_the_mean_over_both_orders_of_the_same_answer() -> None:
    result = by_number().compare(PROMPT, "20", "8")
    first, second = sigmoid(0.05 * 12 + 0.3), sigmoid(0.05 * 12 - 0.3)
    assert result.order_probabilities == pytest.approx((first, second), rel=1e-6)
    assert result.probability == pytest.approx((first + second) / 2, rel=1e-6)
    assert result.logits[0] == pytest.approx((1.3, 0.4), rel=1e-6)
    assert result.logits[1] == pytest.approx((0.7, 1.0), rel=1e-6)


def test_exchanging_the_answers_gives_one_minus_the_probability() -> None:
    model = by_number()
    one, other = model.compare(PROMPT, "20", "8"), model.compare(PROMPT, "8", "20")
    assert one.probability + other.probability == pytest.approx(1, abs=1e-15)
    assert one.order_probabilities == pytest.approx([1 - p for p in reversed(other.order_probabilities)])


@pytest.mark.parametrize("bias", [0.1, 0.3, -2.7, 30.0])
def test_a_model_that_only_looks_at_places_gives_exactly_one_half(bias: float) -> None:
    assert by_number(bias, scale=0).compare(PROMPT, "1", "2").probability == 0.5


def test_an_answer_compared_with_itself_is_asked_once_and_ties() -> None:
    model = by_number()
    assert model.compare(PROMPT, "7", "7").probability == 0.5
    assert forwards(model) == 1


def test_the_temperature_is_the_bundles_unless_the_caller_gives_one() -> None:
    model = pair_pm(lambda a, b: (float(a), float(b)), temperature=2.0)
    assert model.compare(PROMPT, "3", "1").probability == pytest.approx(sigmoid(1))
    assert model.compare(PROMPT, "3", "1", temperature=0.5).probability == pytest.approx(sigmoid(4))


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, "1", True])
def test_a_temperature_that_is_no_positive_number_is_refused(temperature: Any) -> None:
    with pytest.raises(RequestError, match="temperature="):
        by_number().compare(PROMPT, "1", "2", temperature=temperature)


def test_a_bundle_without_a_temperature_is_refused() -> None:
    with pytest.raises(BundleError, match="temperature is None"):
        pair_pm(lambda a, b: (0, 0), temperature=None).compare(PROMPT, "1", "2")


@given(st.floats(allow_nan=False))
def test_the_sigmoid_never_overflows_and_is_symmetric(x: float) -> None:
    assert 0 <= sigmoid(x) <= 1
    assert sigmoid(x) + sigmoid(-x) == pytest.approx(1, abs=1e-15)


def test_many_comparisons_share_batches_and_keep_their_order() -> None:
    model = by_number()
    pairs = [(PROMPT, str(a), str(b)) for a, b in permutations(range(6), 2)]
    results = model.compare_many(pairs)
    assert len(model.engine.batches) < len(pairs)
    alone = [by_number().compare(*pair) for pair in pairs]
    assert [result.probability for result in results] == [result.probability for result in alone]


def test_a_batch_budget_changes_the_batches_and_no_result() -> None:
    pairs = [(PROMPT, str(a), str(b)) for a, b in permutations(range(4), 2)]
    small, large = by_number(), by_number()
    assert small.compare_many(pairs, batch_tokens=1) == large.compare_many(pairs)
    assert set(small.engine.batches) == {1}


def test_nan_logits_are_an_error_of_their_comparison_only() -> None:
    model = pair_pm(lambda a, b: (math.nan if "bad" in (a, b) else 1.0, 0.0))
    results = model.compare_many([(PROMPT, "x", "y"), (PROMPT, "bad", "y"), (PROMPT, "y", "x")], errors="return")
    assert [type(result).__name__ for result in results] == ["Comparison", "UnscorableError", "Comparison"]
    with pytest.raises(UnscorableError, match="not finite"):
        model.compare(PROMPT, "y", "bad")


def test_infinite_logits_are_an_error_too() -> None:
    with pytest.raises(UnscorableError):
        pair_pm(lambda a, b: (math.inf, 0.0)).compare(PROMPT, "x", "y")


def test_the_raised_error_names_every_failed_comparison_and_carries_the_others() -> None:
    model = by_number()
    with pytest.raises(ScoringError, match=r"2 of 3 .* row 0: .*answer B.*; row 2: .*empty") as caught:
        model.compare_many([(PROMPT, "1", 2), (PROMPT, "1", "2"), ([], "1", "2")])
    assert sorted(caught.value.errors) == [0, 2]
    assert caught.value.results[1].probability < 0.5


def test_a_malformed_conversation_is_a_prompt_error() -> None:
    with pytest.raises(PromptError, match="role"):
        by_number().compare([{"content": "Hi"}], "1", "2")


def test_a_cut_that_takes_the_assistant_header_is_an_error_not_a_number() -> None:
    limited = dataclasses.replace(PAIR, chat=dataclasses.replace(PAIR.chat, max_length=40))
    with pytest.raises(PromptError, match=r"too long.*cut from the right"):
        pair_pm(lambda a, b: (1, 0), prompt=limited).compare(PROMPT, "1", "2" * 200)


def test_a_cut_from_the_left_is_told_in_the_result() -> None:
    chat = dataclasses.replace(PAIR.chat, max_length=60, truncation_side="left")
    model = pair_pm(lambda a, b: (len(a), len(b)), prompt=dataclasses.replace(PAIR, chat=chat))
    long_prompt = [{"role": "user", "content": "word " * 100}]
    result = model.compare(long_prompt, "12", "1")
    assert {cut.side for cut in result.truncation} == {"left"}
    assert model.rank(long_prompt, ["12", "1", "123"]).truncation[0][0].tokens > 0
    with pytest.raises(PromptError, match="limit is 60"):
        model.compare(long_prompt, "12", "1", truncation="error")


def test_scoring_one_answer_is_refused_with_the_way_out() -> None:
    with pytest.raises(RequestError, match=r"rank\(messages, responses\) or compare\(messages, a, b\)"):
        by_number().score([PROMPT])


def test_a_chat_prompt_in_the_bundle_is_refused() -> None:
    with pytest.raises(BundleError, match="pair-chat"):
        pair_pm(lambda a, b: (0, 0), prompt=CHAT)  # type: ignore[arg-type]  # the mistake under test


def test_the_probe_refuses_a_bundle_that_gives_no_numbers() -> None:
    pair_pm(lambda a, b: (1.0, 0.0)).probe()
    with pytest.raises(BundleError, match="export the bundle again"):
        pair_pm(lambda a, b: (math.nan, math.nan)).probe()


def test_a_tournament_of_two_scores_the_two_probabilities() -> None:
    model = by_number()
    expected = model.compare(PROMPT, "1", "5").probability
    ranking = model.rank(PROMPT, ["1", "5"])
    assert ranking.scores == (expected, 1 - expected)
    assert ranking.ranks == (2, 1)
    assert ranking.best == 1


@pytest.mark.parametrize("answers", range(2, 20))
def test_a_tournament_takes_two_forwards_for_all_answers_but_one(answers: int) -> None:
    model = by_number()
    ranking = model.rank(PROMPT, [str(5 * i % 23) for i in range(answers)])
    assert forwards(model) == 2 * (answers - 1)
    assert len(ranking.ranks) == answers
    assert ranking.scores[ranking.best] == max(ranking.scores)


def test_the_best_answer_wins_the_tournament_from_every_place() -> None:
    for order in permutations(["1", "5", "9", "14", "30"]):
        assert order[by_number().rank(PROMPT, order).best] == "30"


def test_the_losers_of_one_round_share_a_rank() -> None:
    ranking = by_number().rank(PROMPT, ["4", "3", "2", "1"])
    assert ranking.ranks == (1, 3, 2, 3)
    assert ranking.scores[1] == ranking.scores[3] == 0
    assert ranking.scores[0] + ranking.scores[2] == pytest.approx(3)


def test_a_round_robin_meets_everyone_in_both_orders_and_averages_the_probabilities() -> None:
    model = by_number()
    answers = ["3", "11", "7", "20"]
    ranking = model.rank(PROMPT, answers, method="round-robin")
    assert forwards(model) == 12
    assert ranking.ranks == (4, 2, 3, 1)
    expected = [sum(by_number().compare(PROMPT, a, b).probability for b in answers if b != a) / 3 for a in answers]
    assert ranking.scores == pytest.approx(expected)
    assert sum(ranking.scores) == pytest.approx(2)


@pytest.mark.parametrize("method", CONTESTS)
def test_a_single_answer_is_first_without_asking_the_model(method: str) -> None:
    model = by_number()
    ranking = model.rank(PROMPT, ["only"], method=method)
    assert (ranking.ranks, ranking.scores) == ((1,), (1.0,))
    assert forwards(model) == 0
    with pytest.raises(PromptError):
        model.rank([{"role": "user"}], ["only"], method=method)


@pytest.mark.parametrize("responses", [[], "ab", None, ["1", None], ["1", "\ud800"]])
def test_responses_that_are_not_texts_are_refused(responses: Any) -> None:
    with pytest.raises(RequestError, match="response"):
        by_number().rank(PROMPT, responses)


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match=r"'swiss': 'tournament' or 'round-robin'"):
        by_number().rank(PROMPT, ["1", "2"], method="swiss")


def test_a_comparison_that_fails_fails_the_ranking_and_is_named() -> None:
    model = pair_pm(lambda a, b: (math.nan if "0" in (a, b) else float(a), 0.0))
    with pytest.raises(UnscorableError, match="responses 2 and 3: "):
        model.rank(PROMPT, ["4", "3", "2", "0"])


def test_rankings_of_several_prompts_share_their_rounds() -> None:
    model = by_number()
    groups = [(PROMPT, [str(i + j) for i in range(4)]) for j in range(5)]
    results = model.rank_many([*groups, (PROMPT, [])], errors="return")
    assert isinstance(results[-1], RequestError)
    assert [result.ranks for result in results[:-1]] == [by_number().rank(*group).ranks for group in groups]
    assert len(model.engine.batches) == 2
    with pytest.raises(ScoringError, match="row 5"):
        model.rank_many([*groups, (PROMPT, [])])


def test_ranking_is_deterministic() -> None:
    answers = [str(13 * i % 10) for i in range(10)]
    assert by_number().rank(PROMPT, answers) == by_number().rank(PROMPT, answers)


def test_of_equal_answers_the_earliest_is_the_best() -> None:
    assert by_number().rank(PROMPT, ["5"] * 7).best == 0
    assert by_number().rank(PROMPT, ["5"] * 2).ranks == (1, 1)
    assert by_number().rank(PROMPT, ["5"] * 5, method="round-robin").ranks == (1,) * 5


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_a_knock_out_ends_with_one_best_answer_and_nobody_skips_two_rounds(strengths: list[int]) -> None:
    contest, played, rounds = KnockOut(len(strengths)), [0] * len(strengths), 0
    while matches := contest.matches():
        rounds += 1
        assert all(first < second for first, second in matches)
        for pair in matches:
            for answer in pair:
                played[answer] += 1
        contest.play([sigmoid(strengths[first] - strengths[second]) for first, second in matches])
    assert rounds == (len(strengths) - 1).bit_length()
    assert sum(played) == 2 * (len(strengths) - 1)
    best = contest.scores.index(max(contest.scores))
    assert strengths[best] == max(strengths)
    assert played[best] >= rounds - 1


@given(st.integers(2, 12), st.data())
def test_a_round_robin_score_is_a_mean_probability(answers: int, data: st.DataObject) -> None:
    contest = RoundRobin(answers)
    matches = contest.matches()
    contest.play(data.draw(st.lists(st.floats(0, 1), min_size=len(matches), max_size=len(matches))))
    assert not contest.matches()
    assert all(-1e-12 <= score <= 1 + 1e-12 for score in contest.scores)
    assert sum(contest.scores) == pytest.approx(answers / 2)
