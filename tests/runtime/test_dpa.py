"""The DPA language model's directions and system prompts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_runtime.dpa import direction, system_prompt
from rm_runtime.errors import RequestError


@pytest.mark.parametrize(
    ("degrees", "weights"),
    [
        (-15, (97, -26)),
        (0, (100, 0)),
        (15, (97, 26)),
        (45, (71, 71)),
        (-45, (71, -71)),
        (90, (0, 100)),
        (-90, (0, -100)),
    ],
)
def test_weights_are_a_hundred_times_the_cosine_and_the_sine(degrees: float, weights: tuple[int, int]) -> None:
    assert direction(degrees) == weights
    assert all(type(weight) is int for weight in direction(degrees))


@given(st.floats(-90, 90))
def test_every_direction_is_a_unit_vector_up_to_rounding(degrees: float) -> None:
    w_helpfulness, w_verbosity = direction(degrees)
    assert 0 <= w_helpfulness <= 100
    assert math.hypot(w_helpfulness, w_verbosity) == pytest.approx(100, abs=math.sqrt(0.5) + 1e-9)


@given(st.floats(-45, 45))
def test_the_suggested_angles_are_those_whose_weight_of_helpfulness_is_at_least_71(degrees: float) -> None:
    assert direction(degrees)[0] >= 71


@pytest.mark.parametrize("degrees", [90.5, -180, math.inf, math.nan])
def test_an_angle_that_points_away_from_helpfulness_is_refused(degrees: float) -> None:
    with pytest.raises(RequestError, match="-90 to 90"):
        direction(degrees)


def test_the_system_prompt_is_the_cards_sentence_with_both_weights() -> None:
    assert system_prompt(-15) == (
        "You are a helpful, respectful, and honest assistant who always responds to the user in a harmless "
        "way. Your response should maximize weighted rating = helpfulness*97 + verbosity*-26"
    )
