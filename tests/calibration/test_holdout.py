"""The split: no prompt on both sides, decided by content alone; and the pairs made of it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_calibration.conversations import Example, default_conversations
from rm_calibration.errors import CalibrationError
from rm_calibration.holdout import conversations_digest, prompt_digest, response_pairs, split_examples


def example(prompt: str, *responses: str) -> Example:
    return Example(({"role": "user", "content": prompt},), responses)


SPLIT_OF_A_TO_F = ["a", "c", "e"]

prompts = st.lists(st.sampled_from("abcdefghijkl"), min_size=2, max_size=40).filter(lambda some: len(set(some)) > 1)


@given(prompts, st.floats(0.01, 0.99))
def test_no_prompt_is_on_both_sides_and_none_is_lost(some: list[str], share: float) -> None:
    examples = [example(prompt, str(row)) for row, prompt in enumerate(some)]
    split = split_examples(examples, share)
    sides = [{prompt_digest(each) for each in side} for side in (split.calibration, split.held_out)]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert sorted(split.calibration + split.held_out, key=examples.index) == examples
    assert abs(len(sides[1]) - share * len(set(some))) <= 1


@given(prompts, st.randoms())
def test_order_does_not_decide_who_judges(some: list[str], shuffler: random.Random) -> None:
    examples = [example(prompt, str(row)) for row, prompt in enumerate(some)]
    shuffled = list(examples)
    shuffler.shuffle(shuffled)
    before, after = split_examples(examples), split_examples(shuffled)
    assert set(map(str, before.held_out)) == set(map(str, after.held_out))


def test_the_split_is_the_same_on_every_machine() -> None:
    split = split_examples([example(letter) for letter in "abcdef"], 0.5)
    assert [each.messages[0]["content"] for each in split.held_out] == SPLIT_OF_A_TO_F


def test_white_space_does_not_make_another_prompt() -> None:
    assert prompt_digest(example("hi", "a")) == prompt_digest(example(" hi\n", "b"))
    assert prompt_digest(example("hi")) != prompt_digest(example("ho"))


def test_a_whole_conversation_and_a_prompt_with_responses_are_the_same_prompt() -> None:
    whole = Example(({"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}))
    assert prompt_digest(whole) == prompt_digest(example("hi", "hum"))


@pytest.mark.parametrize("examples", [[], [example("a", "b")], [example("a", "b"), example("a", "c")]])
def test_fewer_than_two_prompts_cannot_be_split(examples: list[Example]) -> None:
    with pytest.raises(CalibrationError, match="cannot be split") as caught:
        split_examples(examples)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0, 1, -1, 2])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        split_examples([example("a"), example("b")], share)


def test_every_two_different_responses_make_a_pair() -> None:
    pairs = response_pairs([example("a", "1", "2", "1", "3"), example("b"), example("c", "4")])
    assert [(pair.prompt, pair.first, pair.second) for pair in pairs] == [(0, "1", "2"), (0, "1", "3"), (0, "2", "3")]
    assert pairs[0].messages == ({"role": "user", "content": "a"},)
    assert not any(pair.strange for pair in pairs)


def test_answers_to_other_prompts_are_set_against_the_first() -> None:
    examples = [example("a", "1", "2"), example("a", "5"), example("b", "3"), example("c", "4"), example("d")]
    strange = [pair for pair in response_pairs(examples, strange=2) if pair.strange]
    assert [(pair.prompt, pair.first, pair.second) for pair in strange] == [
        *((0, "1", "3"), (0, "1", "4")),
        *((1, "5", "3"), (1, "5", "4")),
        *((2, "3", "4"), (2, "3", "1")),
        *((3, "4", "1"), (3, "4", "5")),
    ]


def test_the_digest_of_the_calibration_data_sees_everything() -> None:
    one = example("a", "1", "2")
    digests = [
        conversations_digest(each) for each in ([one], [one, one], [example("a", "1")], [example("b", "1", "2")])
    ]
    assert len(set(digests)) == 4
    assert conversations_digest([example("a", "1", "2")]) == digests[0]


def test_the_default_set_gives_hundreds_of_held_out_pairs() -> None:
    split = split_examples(default_conversations())
    assert abs(len(split.held_out) - len(split.calibration)) <= 1
    assert len(response_pairs(split.held_out, strange=2)) >= 5 * len(split.held_out)
