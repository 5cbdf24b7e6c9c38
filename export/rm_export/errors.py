"""Errors of the exporter. They share rm_runtime's base, so one `except RewardModelError` catches all."""

from __future__ import annotations

from rm_runtime.errors import RewardModelError


class CheckpointError(RewardModelError):
    """A checkpoint cannot be found, read, or trusted, or it is not what its family expects."""


class ExportError(RewardModelError):
    """The export itself cannot be done: unsupported precision for a target, existing output, full disk."""
