"""Every error of the three packages has one base, so that a caller can catch them with one `except`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")


class RewardModelError(Exception):
    """Base of all errors raised on purpose. The message is one line: what was wrong, where, what to do."""


class BundleError(RewardModelError):
    """A bundle is damaged, incomplete, of an unknown format, or not a bundle."""


class EngineError(RewardModelError):
    """An engine is not installed, cannot run this bundle, or failed while running it."""


class RequestError(RewardModelError):
    """A request is malformed: not a conversation, too few responses, an unknown option value."""


class PromptError(RequestError):
    """One conversation cannot be rendered or tokenised (bad roles, refused special tokens, too long)."""


class UnscorableError(RequestError):
    """The graph gave NaN for one row: it holds no token, or not the tokens its family reads from."""


class ScoringError(RewardModelError):
    """Some rows of a request could not be scored; the others were.

    Attributes:
        errors: row number (0-based, in request order) -> the error of that row.
        results: one entry per row in request order; None where `errors` has the row.
    """

    def __init__(self, errors: Mapping[int, RewardModelError], results: Sequence[Any]) -> None:
        self.errors = dict(errors)
        self.results = list(results)
        reasons = "; ".join(f"row {row}: {error}" for row, error in sorted(self.errors.items()))
        super().__init__(f"{len(self.errors)} of {len(self.results)} rows could not be scored: {reasons}")


def raise_if_asked(results: Sequence[Result | RewardModelError], errors: str) -> list[Any]:
    """The results with errors in their places; if errors is "raise" and there are any, raises one ScoringError."""
    failed = {row: result for row, result in enumerate(results) if isinstance(result, RewardModelError)}
    if failed and errors == "raise":
        raise ScoringError(failed, [None if row in failed else result for row, result in enumerate(results)])
    return list(results)
