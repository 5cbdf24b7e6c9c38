"""Chats of realistic length: how many turns, how long each, and text to fill them.

Means are those of one million conversations with language models (LMSYS-Chat-1M, arXiv 2309.11998, table 1: 2.0 turns
a conversation, 69.5 ids a prompt, 214.5 an answer). Lengths are log-normal, as message lengths are; the spreads are
ours: one message in twenty is about five times as long as the median. Turns are geometric.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Message = dict[str, str]


@dataclass(frozen=True)
class LogNormal:
    """Lengths in ids by their mean and the standard deviation of their logarithm."""

    mean: float
    sigma: float

    def draw(self, rng: np.random.Generator) -> int:
        """One length, at least 1."""
        return max(1, round(rng.lognormal(math.log(self.mean) - self.sigma**2 / 2, self.sigma)))


MEAN_TURNS = 2.0
PROMPT_IDS = LogNormal(69.5, 1.0)
ANSWER_IDS = LogNormal(214.5, 1.0)

_TEXT = (
    "the of and to in is that it for you on with as are this be or can your from by have not at if an more will use "
    "which one their time how but also some when what they then other make first people like need work day good way "
    "help new out about example water world number name place right know try ask line name city music price travel "
    "because between important different question answer system language problem reason simple several history "
    "country energy science market program function variable computer recipe weather family health balance"
)

WORDS = _TEXT.split()
"""What the messages say; an engine's speed does not depend on it."""


@dataclass(frozen=True)
class Chat:
    """One conversation up to an answer, and its answers: one, or two to compare."""

    messages: tuple[Message, ...]
    responses: tuple[str, ...]

    def request(self) -> str:
        """The JSON that a server scores this chat by, or by which it compares the two answers."""
        answered = [{"role": "assistant", "content": text} for text in self.responses]
        if len(self.responses) < 2:
            return json.dumps({"messages": [*self.messages, *answered]})
        return json.dumps({"messages": self.messages, "responses": self.responses})


def draw_chats(count: int, responses: int, ids_per_word: float, longest: int, seed: int) -> list[Chat]:
    """`count` chats from a fixed seed.

    responses: answers to the last prompt of each. ids_per_word: of WORDS under the bundle's tokenizer. longest: ids a
    chat's messages may have in all; chats beyond it are drawn again, since a bundle would cut them.
    """
    rng = np.random.default_rng(seed)
    chats: list[Chat] = []
    while len(chats) < count:
        turns = int(rng.geometric(1 / MEAN_TURNS))
        lengths = [(PROMPT_IDS if place % 2 == 0 else ANSWER_IDS).draw(rng) for place in range(2 * turns - 1)]
        answers = [ANSWER_IDS.draw(rng) for _ in range(responses)]
        if sum(lengths) + sum(answers) > longest:
            continue
        texts = [_text(rng, length / ids_per_word) for length in (*lengths, *answers)]
        messages = [
            {"role": ("user", "assistant")[place % 2], "content": text}
            for place, text in enumerate(texts[: len(lengths)])
        ]
        chats.append(Chat(tuple(messages), tuple(texts[len(lengths) :])))
    return chats


def distribution() -> dict[str, object]:
    """The parameters above, as a report names them."""
    return {
        "source": "built-in: LMSYS-Chat-1M means (arXiv 2309.11998, table 1), log-normal lengths, geometric turns",
        "mean_turns": MEAN_TURNS,
        "prompt_ids": vars(PROMPT_IDS),
        "answer_ids": vars(ANSWER_IDS),
    }


def _text(rng: np.random.Generator, words: float) -> str:
    return " ".join(_chosen(WORDS, rng, max(1, round(words))))


def _chosen(words: Sequence[str], rng: np.random.Generator, count: int) -> list[str]:
    return [words[place] for place in rng.integers(0, len(words), count)]
