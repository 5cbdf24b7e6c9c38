"""How much a request asks for, before anything of it is rendered: a short body can mean many long prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rm_runtime.json_requests import RequestLine
from rm_runtime.serving.errors import TooLargeError
from rm_runtime.serving.limits import Limits


def check_sizes(family: str, requests: Sequence[RequestLine], limits: Limits, *, details: bool = False) -> None:
    """Raises TooLargeError if the requests have more rows, or more text once rendered, than one may."""
    rows = characters = 0
    for request in requests:
        answers = request.responses or []
        count = rows_of(family, len(answers), details) if request.responses else 1
        texts = (
            sum(map(_characters, request.messages or ())) + len(request.source or "") + len(request.instruction or "")
        )
        rows += count
        characters += count * (texts + 2 * max(map(len, answers), default=0))
    check_rows(rows, limits)
    if characters > limits.max_characters:
        raise TooLargeError(
            f"its prompts have up to {characters} characters, {limits.max_characters} is the limit; send fewer at once"
        )


def check_rows(rows: int, limits: Limits) -> None:
    """Raises TooLargeError for more rows than a request may have."""
    if rows > limits.max_rows:
        raise TooLargeError(f"the request makes {rows} prompts, {limits.max_rows} is the limit; send fewer at once")


def rows_of(family: str, answers: int, details: bool = False) -> int:
    """Prompts that ranking so many answers takes: one each, two a match of a knock-out, or all ordered pairs."""
    if family == "pairrm" or (family == "pair-pm" and details):
        return answers * (answers - 1)
    return 2 * (answers - 1) if family == "pair-pm" else answers


def _characters(message: Any) -> int:
    return sum(len(text) for text in message.values() if isinstance(text, str)) if isinstance(message, dict) else 0
