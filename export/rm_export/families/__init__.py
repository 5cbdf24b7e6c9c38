"""The families, in the order `auto` asks them. Adding one: a file here and its line below."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from rm_export.checkpoint import Checkpoint
from rm_export.errors import CheckpointError
from rm_export.families.plan import Family, Plan

__all__ = ["FAMILIES", "Family", "Plan", "family", "recognise"]

FAMILIES = {
    "armorm": "rm_export.families.armorm",
    "grm": "rm_export.families.grm",
    "pairrm": "rm_export.families.pairrm",
    "dpa-rm": "rm_export.families.dpa_rm",
    "scalar": "rm_export.families.scalar",
    "pair-pm": "rm_export.families.pair_pm",
}


def family(name: str) -> Family:
    """The family of that name. Raises CheckpointError for an unknown one."""
    if name not in FAMILIES:
        raise CheckpointError(f"unknown family {name!r} (known: {', '.join(FAMILIES)})")
    return cast("Family", import_module(FAMILIES[name]))


def recognise(checkpoint: Checkpoint) -> Family:
    """The first family that recognises the checkpoint by its architectures and tensor names."""
    for name in FAMILIES:
        candidate = family(name)
        if candidate.recognises(checkpoint):
            return candidate
    raise CheckpointError(
        f"{checkpoint.id}: no family recognises architecture {checkpoint.architecture or 'unnamed'!r} with these "
        f"tensors; name one of {', '.join(FAMILIES)} if you know better"
    )
