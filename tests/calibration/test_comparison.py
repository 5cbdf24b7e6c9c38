"""Agreement and flips: cases computed by hand, then what must hold for any scores."""

import json
import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rm_calibration import comparison
from rm_calibration.comparison import (
    Flips,
    average_ranks,
    compare_margins,
    compare_scores,
    compare_within_groups,
    rate_interval,
)

scores = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30)


@st.composite
def two_scorings(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    reference = draw(scores)
    size = len(reference)
    return reference, draw(st.lists(st.floats(-100, 100, width=32), min_size=size, max_size=size))


def test_errors_are_absolute_and_relative_to_the_spread_of_the_reference() -> None:
    agreement = compare_scores([1.0, 3.0], [1.5, 2.75])
    assert (agreement.n, agreement.std) == (2, 1.0)
    assert (agreement.max_error, agreement.mean_error) == (0.5, 0.375)
    assert (agreement.relative_max_error, agreement.relative_mean_error) == (0.5, 0.375)
    assert compare_scores([2.0, 6.0], [3.0, 6.0]).relative_max_error == 0.5


def test_the_worst_rows_come_first_with_their_signed_error() -> None:
    agreement = compare_scores([0.0, 1.0, 2.0], [0.1, 1.0, 1.0])
    assert [row.row for row in agreement.worst] == [2, 0, 1]
    assert agreement.worst[0].error == -1.0
    assert (agreement.worst[0].reference, agreement.worst[0].candidate) == (2.0, 1.0)


def test_the_only_swapped_pair_is_the_only_flip() -> None:
    # of the six pairs only (1, 2) is ordered otherwise; std is sqrt(1.25)
    order = compare_scores([0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 1.0, 3.0]).order
    assert (order.pairs, order.flips) == (6, 1)
    assert (order.clear_pairs, order.clear_flips) == (6, 1)
    assert order.widest == pytest.approx(1 / math.sqrt(1.25))
    assert order.rate == pytest.approx(1 / 6)


def test_a_tie_of_the_candidate_is_a_flip_and_a_tie_of_the_reference_is_no_pair() -> None:
    assert compare_scores([0.0, 1.0], [0.5, 0.5]).order.flips == 1
    assert compare_scores([0.5, 0.5, 1.5], [0.0, 1.0, 2.0]).order.pairs == 2


def test_margins_that_float32_does_not_decide_are_no_pairs() -> None:
    reference = [0.0, 1.0, 1.0 + 2e-5]  # std is about 0.47
    order = compare_scores(reference, [0.0, 1.0, 0.9]).order
    assert (order.pairs, order.flips) == (2, 0)


def test_small_margins_are_pairs_but_not_clear_ones() -> None:
    reference = [0.0, 10.0, 10.2]
    order = compare_scores(reference, [0.0, 10.2, 10.0]).order
    assert (order.pairs, order.flips, order.clear_pairs, order.clear_flips) == (3, 1, 2, 0)


def test_ranks_average_over_ties() -> None:
    assert average_ranks(np.array([10.0, 20.0, 10.0, 30.0, 20.0, 20.0])).tolist() == [1.5, 4, 1.5, 6, 4, 4]


def test_spearman_with_ties_by_hand() -> None:
    # ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)
    agreement = compare_scores([1.0, 2.0, 2.0, 3.0], [10.0, 20.0, 30.0, 40.0])
    assert agreement.spearman == pytest.approx(4.5 / math.sqrt(22.5))
    assert compare_scores([1.0, 2.0, 3.0], [9.0, 5.0, 1.0]).spearman == -1


def test_pearson_by_hand() -> None:
    # deviations -1, 0, 1 and -4/3, -1/3, 5/3: 3 / sqrt(2 * 42/9)
    assert compare_scores([1.0, 2.0, 3.0], [1.0, 2.0, 4.0]).pearson == pytest.approx(3 / math.sqrt(84 / 9))


def test_a_reference_without_spread_has_no_relative_figures() -> None:
    agreement = compare_scores([1.0, 1.0], [1.0, 2.0])
    assert agreement.relative_max_error is None
    assert agreement.spearman is None
    assert agreement.pearson is None
    assert agreement.order == Flips()
    json.dumps(agreement.as_json(), allow_nan=False)


def test_groups_count_only_their_own_pairs() -> None:
    reference, candidate = [0.0, 1.0, 5.0, 4.0, 9.0], [0.0, 1.0, 4.0, 5.0, 0.5]
    flips = compare_within_groups(reference, candidate, [7, 7, 3, 3, 1])
    assert (flips.pairs, flips.flips) == (2, 1)


def test_margins_flip_when_their_sign_does() -> None:
    flips = compare_margins([3.0, -4.0, 0.0, 0.1], [2.0, 0.5, 1.0, -0.1])
    assert (flips.pairs, flips.flips) == (3, 2)  # a margin of 0 prefers nothing
    assert (flips.clear_pairs, flips.clear_flips) == (2, 1)
    assert flips.widest == pytest.approx(4 / math.sqrt(25.01 / 4))


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]]), ([1.0, math.nan], [1.0, 1.0]), ([1.0], [math.inf])],
)
def test_what_is_no_pair_of_finite_vectors_is_refused(reference: list[float], candidate: list[float]) -> None:
    with pytest.raises(ValueError, match="scores"):
        compare_scores(reference, candidate)


@given(two_scorings())
def test_flips_are_what_a_double_loop_counts(scorings: tuple[list[float], list[float]]) -> None:
    reference, candidate = scorings
    std = 0.0 if len(set(reference)) == 1 else float(np.std(reference))
    pairs = [
        (reference[i] - reference[j], candidate[i] - candidate[j])
        for i, j in combinations(range(len(reference)), 2)
        if abs(reference[i] - reference[j]) > comparison.TIE * std
    ]
    flipped = [abs(margin) for margin, other in pairs if np.sign(margin) != np.sign(other)]
    order = compare_scores(reference, candidate).order
    assert (order.pairs, order.flips) == (len(pairs), len(flipped))
    assert order.widest == pytest.approx(max(flipped, default=0.0) / (std or 1.0))
    assert order.clear_flips == sum(margin > comparison.CLEAR * std for margin in flipped)


@given(two_scorings(), st.integers(1, 40))
def test_the_size_of_the_blocks_changes_nothing(scorings: tuple[list[float], list[float]], block: int) -> None:
    expected = compare_scores(*scorings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "_BLOCK", block)
        assert compare_scores(*scorings) == expected


@given(scores)
def test_equal_scores_agree_perfectly(values: list[float]) -> None:
    agreement = compare_scores(values, values)
    assert agreement.max_error == 0
    assert agreement.order.flips == 0
    assume(agreement.spearman is not None)
    assert agreement.spearman == pytest.approx(1)
    assert agreement.pearson == pytest.approx(1)


@given(two_scorings())
def test_one_group_has_all_pairs_and_single_rows_have_none(
    scorings: tuple[list[float], list[float]],
) -> None:
    size = len(scorings[0])
    assert compare_within_groups(*scorings, [0] * size) == compare_scores(*scorings).order
    assert compare_within_groups(*scorings, range(size)) == Flips()


@given(two_scorings())
def test_as_json_is_plain_json(scorings: tuple[list[float], list[float]]) -> None:
    document = json.loads(json.dumps(compare_scores(*scorings).as_json(), allow_nan=False))
    assert document["n"] == len(scorings[0])
    assert document["order"]["pairs"] >= document["order"]["clear_pairs"]


@pytest.mark.parametrize(
    ("rate", "trials", "low", "high"),
    [(0.0, 100, 0.0, 0.0370), (0.5, 10, 0.2366, 0.7634), (1.0, 20, 0.8389, 1.0), (0.0, 0, 0.0, 1.0)],
)
def test_the_interval_of_a_rate_is_wilsons(rate: float, trials: int, low: float, high: float) -> None:
    assert rate_interval(rate, trials) == pytest.approx((low, high), abs=1e-4)
