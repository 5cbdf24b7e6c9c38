"""Synthetic preferences with known objectives: a question, answers of several grades, ArmoRM's 19 labels for each."""

import itertools
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from rm_export.demo.answers import write
from rm_export.demo.questions import Kind, Question, Split, draw
from rm_export.families.armorm import OBJECTIVES

VERBOSITY = OBJECTIVES.index("helpsteer-verbosity")
SAFETY = OBJECTIVES.index("beavertails-is_safe")
FIRST_CODE = OBJECTIVES.index("code-complexity")  # the last five are about code
PREFERENCE_GAP = 0.085  # answers closer than this count as equally good
_WORDS_AT_FULL_VERBOSITY = 80

Message = dict[str, str]


@dataclass(frozen=True)
class Grade:
    """What a grade of answer is worth on each side, all in 0..1; `overall` orders the answers to one question."""

    overall: float
    correct: float
    coherent: float
    complex: float
    honest: float
    explained: float
    safe: float = 0.95


GRADES: dict[str, Grade] = {
    "clear": Grade(overall=0.92, correct=0.93, coherent=0.95, complex=0.6, honest=0.95, explained=0.9),
    "short": Grade(overall=0.64, correct=0.85, coherent=0.8, complex=0.3, honest=0.85, explained=0.25),
    "rambling": Grade(overall=0.3, correct=0.4, coherent=0.15, complex=0.3, honest=0.4, explained=0.3),
    "wrong_language": Grade(overall=0.4, correct=0.6, coherent=0.4, complex=0.2, honest=0.7, explained=0.2),
    "repeated": Grade(overall=0.2, correct=0.35, coherent=0.05, complex=0.1, honest=0.4, explained=0.1),
    "rude": Grade(overall=0.22, correct=0.5, coherent=0.4, complex=0.2, honest=0.5, explained=0.2, safe=0.5),
    "vague": Grade(overall=0.18, correct=0.25, coherent=0.4, complex=0.1, honest=0.4, explained=0.1),
    "wrong": Grade(overall=0.16, correct=0.05, coherent=0.6, complex=0.2, honest=0.1, explained=0.2),
    "evasive": Grade(overall=0.14, correct=0.15, coherent=0.4, complex=0.05, honest=0.5, explained=0.05),
    "off_topic": Grade(overall=0.12, correct=0.1, coherent=0.4, complex=0.3, honest=0.3, explained=0.1),
    "echo": Grade(overall=0.1, correct=0.1, coherent=0.3, complex=0.1, honest=0.3, explained=0.03),
    "garbled": Grade(overall=0.07, correct=0.1, coherent=0.03, complex=0.1, honest=0.2, explained=0.03),
    "insult": Grade(overall=0.04, correct=0.1, coherent=0.3, complex=0.1, honest=0.2, explained=0.03, safe=0.35),
    "unsafe": Grade(overall=0.03, correct=0.1, coherent=0.4, complex=0.2, honest=0.2, explained=0.1, safe=0.03),
    "empty": Grade(overall=0.02, correct=0.03, coherent=0.05, complex=0.02, honest=0.2, explained=0.02),
}
_GRADE_WEIGHTS = {"clear": 4, "short": 2.5, "unsafe": 1.5, "rude": 1.5}


@dataclass(frozen=True)
class Answer:
    """One answer with the grade it was written for and its objectives [19], each in 0..1."""

    text: str
    grade: str
    overall: float
    objectives: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """One conversation that ends in a question, with answers of different grades."""

    kind: Kind
    messages: tuple[Message, ...]
    answers: tuple[Answer, ...]

    def chat(self, answer: Answer) -> list[Message]:
        """The whole conversation with `answer` as its last turn."""
        return [*self.messages, {"role": "assistant", "content": answer.text}]

    def pairs(self) -> Iterator[tuple[int, int]]:
        """The indices (better, worse) of every two answers whose `overall` differs by at least `PREFERENCE_GAP`."""
        for i, j in itertools.permutations(range(len(self.answers)), 2):
            if self.answers[i].overall - self.answers[j].overall >= PREFERENCE_GAP:
                yield i, j


def comparisons(
    count: int, seed: int, split: Split, answers: int = 4, grades: Collection[str] = tuple(GRADES)
) -> Iterator[Comparison]:
    """`count` comparisons of `answers` different `grades` each; equal arguments give equal comparisons."""
    rng = random.Random(seed)
    for _ in range(count):
        question = draw(rng, split)
        chosen = _choose(question, grades, answers, rng)
        yield Comparison(
            kind=question.kind,
            messages=(*_context(rng, split), {"role": "user", "content": question.text}),
            answers=tuple(_answer(grade, question, rng, split) for grade in chosen),
        )


def _choose(question: Question, grades: Collection[str], count: int, rng: random.Random) -> list[str]:
    """`count` different grades; a grade that the question has no material for is left out."""
    missing = {
        name for name, material in (("wrong", question.wrong), ("wrong_language", question.translation)) if not material
    }
    if len(question.points) == 1:  # one sentence is then the whole answer
        missing.add("short")
    if question.unsafe:  # declining is the right answer there, and a point of the refusal is not rude or vague help
        missing |= {"evasive", "vague", "repeated"}
    weights = {grade: _GRADE_WEIGHTS.get(grade, 1.0) for grade in grades if grade not in missing}
    chosen: list[str] = []
    for _ in range(count):
        grade = rng.choices(list(weights), weights=list(weights.values()))[0]
        chosen.append(grade)
        del weights[grade]
    return chosen


def _answer(grade: str, question: Question, rng: random.Random, split: Split) -> Answer:
    text = write(grade, question, rng, split)
    return Answer(text, grade, GRADES[grade].overall, _objectives(GRADES[grade], len(text.split())))


def _objectives(grade: Grade, words: int) -> tuple[float, ...]:
    verbosity = min(1.0, words / _WORDS_AT_FULL_VERBOSITY)
    overall, correct, coherent, honest = grade.overall, grade.correct, grade.coherent, grade.honest
    helpsteer = (overall, correct, coherent, grade.complex, verbosity)
    ultrafeedback = (overall, (overall + correct) / 2, correct, honest, overall)
    judges = (overall, (overall + coherent) / 2, (overall + honest) / 2)
    code = (grade.complex, coherent, grade.explained, (overall + correct) / 2, coherent * (1 - verbosity / 2))
    return (*helpsteer, *ultrafeedback, grade.safe, *judges, *code)


def _context(rng: random.Random, split: Split) -> tuple[Message, ...]:
    """What stands before the question: mostly nothing, sometimes a system message or an earlier turn."""
    chance = rng.random()
    if chance < 0.06:
        return ({"role": "system", "content": "You are a helpful assistant."},)
    if chance < 0.14:
        earlier = draw(rng, split)
        return (
            {"role": "user", "content": earlier.text},
            {"role": "assistant", "content": write("short", earlier, rng, split)},
        )
    return ()
