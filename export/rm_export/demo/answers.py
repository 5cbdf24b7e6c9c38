"""Answers of graded quality: for a question, the text that each grade would give."""

import random
from collections.abc import Callable

from rm_export.demo.phrases import phrase
from rm_export.demo.questions import Question, Split, draw

_EMPTY = ("", "", "...", "ok", "?", "-", "yes", "no", "hm", "lol", ".", "k")
_JOINS = ("and then", "then", "after that", "and", "or")


def write(grade: str, question: Question, rng: random.Random, split: Split) -> str:
    """The text of an answer of `grade` (a key of `preferences.GRADES`) to `question`."""
    return _WRITERS[grade](question, rng, split)


def _short(question: Question, rng: random.Random, split: Split) -> str:
    return phrase("decline", rng, split) if question.unsafe else _cut(question.points[0], rng)


def _vague(question: Question, rng: random.Random, split: Split) -> str:
    return _several("vague", rng, split, most=2)


def _rude(question: Question, rng: random.Random, split: Split) -> str:
    parts = [_several("insult", rng, split, most=2), question.points[0]]
    return " ".join(parts if rng.random() < 0.7 else reversed(parts))


def _insult(question: Question, rng: random.Random, split: Split) -> str:
    return _several("insult", rng, split, most=3)


def _repeated(question: Question, rng: random.Random, split: Split) -> str:
    return " ".join([rng.choice(question.points)] * rng.randint(3, 4))


def _echo(question: Question, rng: random.Random, split: Split) -> str:
    return " ".join([question.text] * rng.randint(1, 2))


def _wrong(question: Question, rng: random.Random, split: Split) -> str:
    return _wrap(rng.choice(question.wrong), rng, split)


def _wrong_language(question: Question, rng: random.Random, split: Split) -> str:
    return question.translation


def _off_topic(question: Question, rng: random.Random, split: Split) -> str:
    return write(rng.choice(("clear", "clear", "short")), _other(question, rng, split), rng, split)


def _evasive(question: Question, rng: random.Random, split: Split) -> str:
    return phrase("excuse" if rng.random() < 0.6 else "decline", rng, split)


def _empty(question: Question, rng: random.Random, split: Split) -> str:
    return rng.choice(_EMPTY)


def _several(pool: str, rng: random.Random, split: Split, most: int) -> str:
    return " ".join(phrase(pool, rng, split) for _ in range(rng.randint(1, most)))


def _wrap(text: str, rng: random.Random, split: Split) -> str:
    """The text as it is, or with a friendly first or last sentence."""
    parts = [text]
    if rng.random() < 0.4:
        parts.insert(0, phrase("opener", rng, split))
    if rng.random() < 0.4:
        parts.append(phrase("closer", rng, split))
    return " ".join(parts)


def _clear(question: Question, rng: random.Random, split: Split) -> str:
    points = list(question.points[: rng.randint(2, 4)])
    if question.kind == "advice" and rng.random() < 0.15:
        points = ["\n".join(f"{number}. {point}" for number, point in enumerate(points, 1))]
    text = ("\n" if question.kind == "code" else " ").join(points)
    if question.unsafe:
        return f"{phrase('decline', rng, split)} {text}"
    return text if question.kind == "language" else _wrap(text, rng, split)


def _cut(point: str, rng: random.Random) -> str:
    """A point, sometimes only up to its first comma."""
    head = point.split(",", maxsplit=1)[0]
    if rng.random() < 0.3 and head != point and "```" not in point:
        return head + "."
    return point


def _rambling(question: Question, rng: random.Random, split: Split) -> str:
    filler = [phrase("filler", rng, split) for _ in range(rng.randint(2, 4))]
    parts = [*question.points[:2], *filler]
    rng.shuffle(parts)
    return " ".join(parts)


def _other(question: Question, rng: random.Random, split: Split) -> Question:
    while True:
        other = draw(rng, split)
        if other.points != question.points and not other.unsafe:
            return other


def _garbled(question: Question, rng: random.Random, split: Split) -> str:
    words = " ".join(question.points).split()
    rng.shuffle(words)
    return " ".join(words[: rng.randint(4, 20)])


def _unsafe(question: Question, rng: random.Random, split: Split) -> str:
    count = rng.randint(1, 2)
    steps = (
        rng.sample(question.unsafe, count) if question.unsafe else [phrase("harm", rng, split) for _ in range(count)]
    )
    text = f"{phrase('harm opener', rng, split)} {f' {rng.choice(_JOINS)} '.join(steps)}."
    return text if question.unsafe or rng.random() < 0.5 else f"{question.points[0]} {text}"


_WRITERS: dict[str, Callable[[Question, random.Random, Split], str]] = {
    "clear": _clear,
    "short": _short,
    "rambling": _rambling,
    "wrong_language": _wrong_language,
    "repeated": _repeated,
    "rude": _rude,
    "vague": _vague,
    "wrong": _wrong,
    "evasive": _evasive,
    "off_topic": _off_topic,
    "echo": _echo,
    "garbled": _garbled,
    "insult": _insult,
    "unsafe": _unsafe,
    "empty": _empty,
}
