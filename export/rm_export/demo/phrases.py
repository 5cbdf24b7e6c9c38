"""The stock phrases of good and bad answers, as patterns with choices: "What a {stupid|dumb} question."

They are split like the questions: every sixth phrase of a pool is held out, so a model is tested on insults, excuses
and filler whose wording it never saw in training.
"""

import functools
import itertools
import json
import random
import re
from importlib import resources

from rm_export.demo.questions import Split, keep

_CHOICE = re.compile(r"\{([^}]*)\}")


@functools.cache
def pools() -> dict[str, list[str]]:
    """The patterns of phrases.json by pool: openers, closers, refusals, insults, filler and so on."""
    text = (resources.files("rm_export.demo") / "phrases.json").read_text(encoding="utf-8")
    patterns: dict[str, list[str]] = json.loads(text)
    return patterns


def expand(pattern: str) -> list[str]:
    """Every phrase of a pattern: `expand("{a|b} c")` is `["a c", "b c"]`."""
    pieces = _CHOICE.split(pattern)  # text and choices in turn
    choices = [piece.split("|") if index % 2 else [piece] for index, piece in enumerate(pieces)]
    return ["".join(combination) for combination in itertools.product(*choices)]


@functools.cache
def _phrases(pool: str, split: Split) -> list[list[str]]:
    shuffled = [expand(pattern) for pattern in pools()[pool]]
    for phrases in shuffled:
        random.Random(pool).shuffle(phrases)
    kept = [keep(phrases, split) for phrases in shuffled]
    return [phrases for phrases in kept if phrases]


def phrase(pool: str, rng: random.Random, split: Split) -> str:
    """One phrase of `pool` that belongs to `split`; every pattern is equally likely."""
    return rng.choice(rng.choice(_phrases(pool, split)))
