"""Conversations to measure on, as JSON lines or a Parquet file: a user's, or the default set.

A line or row is {"messages": [...], "responses": [...]}: the messages end before the answer, each response is one.
Without "responses", the messages are a whole conversation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from rm_runtime.errors import PromptError, RequestError
from rm_runtime.parquet import SUFFIX, read_rows
from rm_runtime.templates import validate_conversation, validate_text

if TYPE_CHECKING:
    from pathlib import Path

Message = dict[str, str]


@dataclass(frozen=True)
class Example:
    """One prompt with its answers; without responses, a whole conversation that ends in the answer.

    messages: {"role", "content"} each. responses: answers to `messages`, maybe none. In the default set they
    stand from the best to the worst.
    """

    messages: tuple[Message, ...]
    responses: tuple[str, ...] = ()

    def conversation(self, response: int | None = None) -> list[Message]:
        """The whole conversation with that response as its last message."""
        if response is None:
            return list(self.messages)
        return [*self.messages, {"role": "assistant", "content": self.responses[response]}]


def default_conversations() -> list[Example]:
    """The set that ships with the package: varied prompts, answers of graded quality (CC0)."""
    content = resources.files("rm_calibration").joinpath("conversations.jsonl").read_bytes()
    return parse_conversations(content, "the default conversations")


def read_conversations(path: Path) -> list[Example]:
    """Read a JSONL file, or a Parquet file (its name ends in .parquet; needs pyarrow).

    Raises RequestError, in one line that names the line or row, for anything it cannot use.
    """
    if path.suffix == SUFFIX:
        return _read_parquet(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None
    return parse_conversations(content, str(path))


def parse_conversations(content: bytes, where: str) -> list[Example]:
    """JSON lines (UTF-8, blank lines allowed) as examples. where: what to call them in a RequestError."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    examples = [_example(line, f"{where}, line {n}") for n, line in enumerate(lines, start=1) if line.strip()]
    if not examples:
        raise RequestError(f"{where} holds no line; each is an object with messages and, if you like, responses")
    return examples


def _read_parquet(path: Path) -> list[Example]:
    rows = list(read_rows(path, ("messages", "responses")))
    if not rows:
        raise RequestError(f"{path} holds no row; each has messages and, if you like, responses")
    return [_example_of(row, f"{path}, row {n}") for n, row in enumerate(rows, start=1)]


def _example(line: bytes, where: str) -> Example:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise RequestError(f"{where}: not a JSON object ({error})") from None
    return _example_of(document, where)


def _example_of(document: Any, where: str) -> Example:
    if isinstance(document, RequestError):
        raise RequestError(f"{where}: {document}")
    if not isinstance(document, dict) or "messages" not in document:
        raise RequestError(f'{where}: expected an object like {{"messages": [...], "responses": [...]}}')
    try:
        messages = validate_conversation(document["messages"])
        responses = _responses(document.get("responses"))
    except PromptError as error:
        raise RequestError(f"{where}: {error}") from None
    return Example(tuple(messages), responses)


def _responses(responses: Any) -> tuple[str, ...]:
    if responses is None:
        return ()
    if not isinstance(responses, list) or not responses:
        raise PromptError(f"responses must be a list of at least one text, not {responses!r:.60}")
    return tuple(validate_text(response, f"response {place}") for place, response in enumerate(responses))
