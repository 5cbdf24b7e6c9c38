"""The part of parity.html that tells what a recipe did: each activation's range, and its products' effect."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rm_calibration.formats import FORMATS
from rm_calibration.recipe import natural_order
from rm_export import charts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rm_calibration.recipe import Activation, Gemm, Recipe

_DECADES = 4
"""Range bars are logarithmic and this long: a value 10^4 below the widest has no bar."""


def recipe_rows(recipe: Recipe, precision: str) -> list[dict[str, Any]]:
    """One entry an activation, in the recipe's order of layers: texts and bars of a table row.

    effect: of its products alone on the scores, in standard deviations. before, after: max |x| as the float model has
    it, and smoothed. clip: where the precision saturates.
    """
    effect = {gemm.input: gemm.sensitivity for gemm in recipe.gemms.values()}
    decisions = {gemm.input: gemm for gemm in recipe.gemms.values()}
    largest_effect = max((value for value in effect.values() if value), default=0.0)
    widest = max((activation.largest for activation in recipe.activations.values()), default=0.0)
    rows = []
    for name in natural_order(recipe.activations):
        activation, measured = recipe.activations[name], effect.get(name)
        rows.append(
            {
                "name": name.removesuffix(".input"),
                "decision": _decision(decisions[name], precision) if name in decisions else "",
                "reason": decisions[name].reason if name in decisions else "",
                "alpha": f"{activation.alpha:g}",
                "effect": _cell(measured, (measured or 0.0) / largest_effect if largest_effect else 0.0),
                "before": _cell(activation.largest, _log_share(activation.largest, widest)),
                "after": _cell(activation.largest_smoothed, _log_share(activation.largest_smoothed, widest)),
                "clip": f"{activation.amax if FORMATS[precision].clips else activation.largest_smoothed:.3g}",
            }
        )
    return rows


def smoothing_told(activations: Sequence[Activation]) -> str:
    """By how much smoothing narrowed the activations, in a sentence."""
    narrowed = [one.largest / one.largest_smoothed for one in activations if one.largest_smoothed > 0]
    if not narrowed:
        return ""
    return f"Smoothing makes the widest activation {max(narrowed):.3g} times narrower."


def _decision(gemm: Gemm, precision: str) -> str:
    return precision if gemm.decision == "int8" else gemm.decision


def _cell(value: float | None, share: float) -> dict[str, Any]:
    return {"text": "–" if value is None else f"{value:.3g}", "bar": charts.bar(share)}


def _log_share(value: float, widest: float) -> float:
    return 1 + math.log10(value / widest) / _DECADES if value > 0 and widest > 0 else 0.0
