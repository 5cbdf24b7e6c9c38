"""The questions of the demo's preference set: a bank written by hand, and two kinds made by rule.

Every sixth record of a kind is held out: training never sees its question, its points or its name. The two kinds
made by rule (sums, and little stories to read) hold out operands, names and wordings in the same way.
"""

import functools
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Literal

Split = Literal["train", "held_out"]
Kind = Literal["fact", "advice", "code", "unsafe", "language", "thing", "chore", "sum", "story"]

KIND_WEIGHTS: dict[Kind, float] = {
    "fact": 4,
    "advice": 6,
    "code": 3,
    "unsafe": 3,
    "language": 2,
    "thing": 2,
    "chore": 5,
    "sum": 1,
    "story": 1,
}
_HELD_OUT_EVERY = 6

_THING_WORDINGS = (
    "What is {}?",
    "Explain what {} is.",
    "Tell me what {} is.",
    "What do people call {}?",
    "Define {}.",
)
_SUM_WORDINGS = (
    "What is {} {} {}?",
    "Compute {} {} {}.",
    "How much is {} {} {}?",
    "Please work out {} {} {}.",
)
_STORY_WORDINGS = (
    "What colour is the {1} of {0}?",
    "Which colour has the {1} of {0}?",
    "Name the colour of the {1} of {0}.",
)
_NAMES = ("Mia", "Tom", "Ana", "Leo", "Sara", "Omar", "Ida", "Max", "Nina", "Paul", "Rosa", "Ben")
_OBJECTS = ("kite", "ball", "hat", "bike", "cup", "boat", "scarf", "door", "drum", "coat", "lamp", "bag")
_COLOURS = ("red", "blue", "green", "yellow", "black", "white", "orange", "purple")


@dataclass(frozen=True)
class Question:
    """One question with the material its answers are made of.

    `points` are true sentences in order of weight, `wrong` are false answers, `unsafe` are harmful ones (only for
    requests that should be declined), `translation` is a right answer in the wrong language.
    """

    kind: Kind
    text: str
    points: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    unsafe: tuple[str, ...] = ()
    translation: str = ""


def keep(items: Sequence[str], split: Split) -> list[str]:
    """The part of a list of phrasings that belongs to `split`: every sixth phrase is held out."""
    held_out = split == "held_out"
    return [item for index, item in enumerate(items) if (index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1) == held_out]


def draw(rng: random.Random, split: Split) -> Question:
    """One random question of `split`, its kind drawn by `KIND_WEIGHTS`."""
    kind = rng.choices(list(KIND_WEIGHTS), weights=list(KIND_WEIGHTS.values()))[0]
    if kind == "sum":
        return _sum(rng, split)
    if kind == "story":
        return _story(rng, split)
    question = rng.choice(rng.choice(bank(split)[kind]))
    return _about(rng.choice(keep(_chore_nouns(), split)), question) if kind == "chore" else question


@functools.cache
def bank(split: Split) -> dict[Kind, list[list[Question]]]:
    """The hand-written questions of `split`: for each kind its records, for each record its wordings."""
    by_kind: dict[Kind, list[str]] = defaultdict(list)
    for line in _demo_file("questions.jsonl").splitlines():
        by_kind[json.loads(line)["kind"]].append(line)
    return {kind: [_wordings(line) for line in keep(records, split)] for kind, records in by_kind.items()}


def _wordings(line: str) -> list[Question]:
    record = json.loads(line)
    if record["kind"] == "thing":
        article = "an" if record["name"][0] in "aeiou" else "a"
        record["questions"] = [wording.format(f"{article} {record['name']}") for wording in _THING_WORDINGS]
    return [
        Question(
            kind=record["kind"],
            text=text,
            points=tuple(record["points"]),
            wrong=tuple(record.get("wrong", ())),
            unsafe=tuple(record.get("unsafe", ())),
            translation=record.get("translation", ""),
        )
        for text in record["questions"]
    ]


@functools.cache
def _chore_nouns() -> list[str]:
    nouns: list[str] = json.loads(_demo_file("nouns.json"))
    return nouns


def _demo_file(name: str) -> str:
    return (resources.files("rm_export.demo") / name).read_text(encoding="utf-8")


def _about(noun: str, chore: Question) -> Question:
    """The chore of one noun: "How do I clean {}?" becomes "How do I clean a chair?"."""
    the_noun = "the " + noun.split(maxsplit=1)[1]
    first, *rest = chore.points
    return replace(
        chore,
        text=chore.text.format(noun),
        points=(first.format(noun), *(point.format(the_noun) for point in rest)),
    )


def _sum(rng: random.Random, split: Split) -> Question:
    held_out = split == "held_out"
    while True:
        a, b = rng.randint(1, 12), rng.randint(1, 12)
        if (a * b % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1) == held_out:
            break
    result = a + b
    wording = rng.choice(_SUM_WORDINGS[-1:] if held_out else _SUM_WORDINGS[:-1])
    return Question(
        kind="sum",
        text=wording.format(a, "+", b),
        points=(
            f"The answer is {result}, because {a} + {b} = {result}.",
            f"You can check it: count {b} steps up from {a} and you arrive at {result}.",
        ),
        wrong=(f"The answer is {result + rng.choice((-3, -2, 2, 3, 10))}.",),
    )


def _story(rng: random.Random, split: Split) -> Question:
    held_out = split == "held_out"
    names = _NAMES[-4:] if held_out else _NAMES[:-4]
    things = _OBJECTS[-4:] if held_out else _OBJECTS[:-4]
    (first, second), (one, two), (asked, other) = (
        rng.sample(names, 2),
        rng.sample(things, 2),
        rng.sample(_COLOURS, 2),
    )
    facts = [f"{first} has a {asked} {one}.", f"{second} has a {other} {two}."]
    rng.shuffle(facts)
    wording = rng.choice(_STORY_WORDINGS[-1:] if held_out else _STORY_WORDINGS[:-1])
    return Question(
        kind="story",
        text=" ".join([*facts, wording.format(first, one)]),
        points=(f"The {one} of {first} is {asked}.", f"The story says that {first} has a {asked} {one}."),
        wrong=(f"The {one} of {first} is {other}.",),
    )
