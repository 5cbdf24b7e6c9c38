"""Deterministic chats and preference groups that cover what real inputs look like."""

from collections.abc import Iterator

import numpy as np

from corpus import CODE, ENGLISH, OTHER_LANGUAGES, SYMBOLS

Message = dict[str, str]

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "Antworte immer auf Deutsch.",
    "  You are a pirate.\nSpeak like one.  ",
    "",
)
SHORT = ("Hi", "ok", "?", "42", "No.", "да", "是", "👍", "a", "B")
EDGES = ("", " ", "  ", "\n", "\n\n", "\t", " \n ")
SPECIAL_TEXT = (
    "What does </s> mean? And <s>, <unk>, <pad>?",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nSure!",
    "Ends here <|end_of_text|> or here <|endoftext|> or <|im_end|> not",
    "<end_of_turn>\n<start_of_turn>model\nYes<eos>",
    "[INST] ignore that [/INST] [CLS] one [SEP] two [MASK] [PAD]",
    "<|begin_of_text|><bos>[RESPONSE A] x [RESPONSE B] y [CONTEXT]",
)
"""Special tokens of the fixture tokenizers as plain text; PairRM's prefixes would break its reference."""


def conversations(
    n: int = 220, seed: int = 0, *, system: bool = True, special_text: bool = True
) -> list[list[Message]]:
    """`n` chats of user/assistant turns (one to seven of each) that end in an assistant turn.

    Among them: system messages unless `system` is False (Gemma's and Mistral's templates refuse them), empty
    answers, one-character texts, surrounding whitespace, several scripts, code, emoji, four (of 220) of a
    thousand tokens or more, and unless `special_text` is False a few that spell out special tokens. The turns
    are the same for either value of `system`.
    """
    return [_chat(np.random.default_rng([seed, index]), index, system, special_text) for index in range(n)]


def preference_groups(
    n: int, seed: int = 0, *, responses: int | None = None, special_text: bool = False
) -> list[tuple[list[Message], list[str]]]:
    """`n` groups of (messages ending in a user turn, distinct responses: `responses` of them, or 2 to 5)."""
    groups = []
    for index in range(n):
        rng = np.random.default_rng([seed, index, 1])
        messages = _chat(rng, 2 * index + 1, False, special_text)[:-1]
        count = responses or int(rng.integers(2, 6))
        answers: dict[str, None] = {}
        while len(answers) < count:
            answers[_text(rng, int(rng.integers(1, 4)))] = None
        groups.append((messages, list(answers)))
    return groups


def _chat(rng: np.random.Generator, index: int, system: bool, special_text: bool) -> list[Message]:
    turns = 1 if rng.random() < 0.6 else int(rng.integers(2, 8))
    messages = []
    for _ in range(turns):
        length = 1 if turns > 1 else int(rng.integers(1, 4))
        messages.append({"role": "user", "content": _text(rng, length)})
        messages.append({"role": "assistant", "content": _text(rng, length + 1)})
    for place, content in _planned(rng, index, special_text):
        messages[place]["content"] = content
    system_message = str(rng.choice(SYSTEM_MESSAGES))
    if system and rng.random() < 0.25:
        messages.insert(0, {"role": "system", "content": system_message})
    return messages


def _planned(rng: np.random.Generator, index: int, special_text: bool) -> Iterator[tuple[int, str]]:
    """(place, content) of what chance could leave out; place 0 is the first prompt, -1 the last answer."""
    if index % 20 == 2:
        yield -1, EDGES[index // 20 % len(EDGES)]
    if index % 20 == 4:
        yield 0, SHORT[index // 20 % len(SHORT)]
        yield -1, SHORT[(index // 20 + 3) % len(SHORT)]
    if index % 55 == 26:
        # the prompt or the answer in turn
        yield (0 if index // 55 % 2 else -1), _text(rng, 45)
    if special_text and index % 30 == 8:
        yield (-1 if index // 30 % 2 else 0), SPECIAL_TEXT[index // 30 % len(SPECIAL_TEXT)]


def _text(rng: np.random.Generator, sentences: int) -> str:
    parts = []
    for _ in range(sentences):
        kind = rng.random()
        pool = ENGLISH if kind < 0.6 else OTHER_LANGUAGES if kind < 0.8 else CODE if kind < 0.9 else SYMBOLS
        part = str(rng.choice(pool))
        if pool is CODE and rng.random() < 0.7:
            part = f"```\n{part}```"
        if pool is ENGLISH and rng.random() < 0.3:
            part = _shuffled(rng, part)
        parts.append(part)
    text = ("\n" if rng.random() < 0.2 else " ").join(parts)
    if rng.random() < 0.15:
        text = f"{EDGES[int(rng.integers(len(EDGES)))]}{text}{EDGES[int(rng.integers(len(EDGES)))]}"
    return text


def _shuffled(rng: np.random.Generator, sentence: str) -> str:
    """A sentence like no other: its words in another order, with a number."""
    words = sentence.split(" ")
    rng.shuffle(words)
    return f"{' '.join(words)} {int(rng.integers(100_000))}"
