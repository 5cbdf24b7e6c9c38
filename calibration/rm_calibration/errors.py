"""Errors of calibration. They share rm_runtime's base, so one `except RewardModelError` catches all."""

from __future__ import annotations

from rm_runtime.errors import RewardModelError


class CalibrationError(RewardModelError):
    """No trustworthy numbers for a quantised graph: bad activations, weights packed wrongly, an unfit recipe."""
