"""What a loaded bundle can do, by family. A family's module is imported when a bundle of it is loaded."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rm_runtime.errors import BundleError

_MODELS = {
    "armorm": ("rm_runtime.families.pointwise", "ArmoRM"),
    "grm": ("rm_runtime.families.pointwise", "PointwiseModel"),
    "scalar": ("rm_runtime.families.pointwise", "PointwiseModel"),
    "dpa-rm": ("rm_runtime.families.pointwise", "DPARewardModel"),
    "pair-pm": ("rm_runtime.families.pair_pm", "PairPM"),
    "pairrm": ("rm_runtime.families.pairrm", "PairRM"),
}


def model_class(family: str) -> Any:
    """The class of that family; its constructor takes (bundle, engine, options)."""
    if family not in _MODELS:
        raise BundleError(f"unknown family {family!r} (known: {', '.join(_MODELS)}); update rm-export")
    module, name = _MODELS[family]
    return getattr(import_module(module), name)
