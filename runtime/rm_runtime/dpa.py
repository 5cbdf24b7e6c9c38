"""Directional Preference Alignment: an angle -> the system prompt of the language model aligned with it.

A user's preference is a direction in the plane of helpfulness and verbosity: degrees 0 asks for helpfulness
alone, a negative angle for brevity, a positive one for length. `DPAScore.along` measures an answer in the
same direction.

Source: "Usage" in the README of RLHFlow/Directional-Preference-Alignment (bb19318), which the model card of
RLHFlow/DPA-v1-Mistral-7B (c731b39) repeats. It suggests a weight of helpfulness of at least 71, that is
angles from -45 to 45; wider ones are allowed here as they are there.
"""

from __future__ import annotations

import math

from rm_runtime.errors import RequestError

SYSTEM_PROMPT = (
    "You are a helpful, respectful, and honest assistant who always responds to the user in a harmless way. "
    "Your response should maximize weighted rating = "
    "helpfulness*{weight_helpfulness} + verbosity*{weight_verbosity}"
)
"""The card's template, letter for letter: no full stop at its end."""


def direction(degrees: float) -> tuple[int, int]:
    """(weight of helpfulness, weight of verbosity): 100 times the cosine and the sine, rounded to integers.

    degrees: from -90 to 90, as the weight of helpfulness is from 0 to 100. -15 gives (97, -26).
    Raises RequestError for other angles.
    """
    if not -90 <= degrees <= 90:
        raise RequestError(f"degrees={degrees!r}: an angle from -90 to 90 (the authors suggest -45 to 45)")
    angle = math.radians(degrees)
    return round(100 * math.cos(angle)), round(100 * math.sin(angle))


def system_prompt(degrees: float) -> str:
    """The content of the system message that asks the DPA language model for that direction."""
    weight_helpfulness, weight_verbosity = direction(degrees)
    return SYSTEM_PROMPT.format(weight_helpfulness=weight_helpfulness, weight_verbosity=weight_verbosity)
