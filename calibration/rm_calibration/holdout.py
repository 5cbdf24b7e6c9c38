"""Which conversations calibrate and which judge, and the pairs of answers a judge is asked about.

Numbers fitted to a prompt must not be graded on it. The split depends on the prompts' content alone: not on their
order in the file, on a seed, or on the machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from rm_calibration.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rm_calibration.conversations import Example, Message


@dataclass(frozen=True)
class Split:
    """Two parts of one set without a common prompt, each in the set's order, none empty."""

    calibration: tuple[Example, ...]
    held_out: tuple[Example, ...]


@dataclass(frozen=True)
class ResponsePair:
    """Two different answers to one prompt. prompt: its row among the examples; first, second: texts.

    strange: the second answers another prompt, so that the first should win by a wide margin.
    """

    prompt: int
    messages: tuple[Message, ...]
    first: str
    second: str
    strange: bool = False


def prompt_digest(example: Example) -> str:
    """sha256 of the messages before the answer, in hex; white space at the ends of a message does not count."""
    messages = example.messages
    if not example.responses and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return _digest([[message["role"], message["content"].strip()] for message in messages])


def conversations_digest(examples: Sequence[Example]) -> str:
    """sha256 in hex of every message and response, in order: what a recipe calls its calibration data."""
    return _digest([[list(map(dict, example.messages)), list(example.responses)] for example in examples])


def split_examples(examples: Sequence[Example], held_out: float = 0.5) -> Split:
    """Put the share `held_out` of the distinct prompts (rounded up, at least one a side) into the held-out part.

    Prompts are ranked by digest, so examples with the same prompt stay together. Raises CalibrationError if there
    are not two different prompts, ValueError unless 0 < held_out < 1.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a share between 0 and 1, not {held_out}")
    digests = [prompt_digest(example) for example in examples]
    ranked = sorted(set(digests))
    if len(ranked) < 2:
        raise CalibrationError(
            f"{len(examples)} conversations with {len(ranked)} different prompts cannot be split into calibration and "
            "held-out ones; give at least two prompts, better a hundred"
        )
    count = min(math.ceil(len(ranked) * held_out), len(ranked) - 1)
    judging = set(ranked[:count])
    return Split(
        calibration=tuple(example for example, digest in zip(examples, digests, strict=True) if digest not in judging),
        held_out=tuple(example for example, digest in zip(examples, digests, strict=True) if digest in judging),
    )


def response_pairs(examples: Sequence[Example], strange: int = 0) -> list[ResponsePair]:
    """Every two different responses of each example, earlier one first, in order.

    strange: how many answers to other prompts to set against each example's first response besides: those of the
    next examples with another prompt, wrapping round, taken from their first response.
    """
    digests = [prompt_digest(example) for example in examples]
    pairs = []
    for row, example in enumerate(examples):
        distinct = list(dict.fromkeys(example.responses))
        pairs += [ResponsePair(row, example.messages, first, second) for first, second in combinations(distinct, 2)]
        if distinct:
            others = [(row + step) % len(examples) for step in range(1, len(examples))]
            answers = [
                examples[at].responses[0] for at in others if examples[at].responses and digests[at] != digests[row]
            ]
            fitting = [answer for answer in dict.fromkeys(answers) if answer not in distinct]
            pairs += [ResponsePair(row, example.messages, distinct[0], answer, True) for answer in fitting[:strange]]
    return pairs


def _digest(document: object) -> str:
    text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
