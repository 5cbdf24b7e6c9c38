"""A chat template as a plain list of pieces, for runtimes without Jinja (runtime/cpp).

rm_export.template_pieces makes it out of the template and compares both on many chats; the template stays what this
package renders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rm_runtime.errors import PromptError


class NotInPiecesError(PromptError):
    """The pieces say nothing about messages in this order; rendered text can still be sent."""


ContentRule = Literal["keep", "strip"]
"""What becomes of a message's content: nothing, or white space is taken off both ends (Python's str.strip)."""


@dataclass(frozen=True)
class Turn:
    """What is written before the content of a message with `role` that follows one with role `after` (None: the first).

    last: only where it is, or is not, the last message; None: both. refused: no text, but this error.
    """

    after: str | None
    role: str
    text: str = ""
    last: bool | None = None
    refused: str | None = None


@dataclass(frozen=True)
class TemplatePieces:
    """What a chat template writes around the contents of messages.

    turns: the first that fits a message counts. content: role -> rule. end: role of the last message -> what follows
    its content. roles: "named", or "parity" where the template asks for places and not for roles; they are "even" and
    "odd" then. skips_empty_last: the last turn's text is left out if its content is empty.
    """

    turns: tuple[Turn, ...]
    content: Mapping[str, ContentRule]
    end: Mapping[str, str]
    roles: Literal["named", "parity"] = "named"
    skips_empty_last: bool = False

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The template's text. PromptError for roles in an order it refuses, NotInPiecesError for unknown ones."""
        text, before, role = "", None, None
        for place, message in enumerate(messages):
            before, role = role, message["role"] if self.roles == "named" else ("even", "odd")[place % 2]
            last = place == len(messages) - 1
            turn = self._turn(before, role, last)
            if turn is not None and turn.refused is not None:
                raise PromptError(turn.refused)
            if turn is None or (last and role not in self.end):
                follows = "begins the chat" if before is None else f"follows {before!r}"
                raise NotInPiecesError(
                    f"message {place} has the role {role!r} and {follows}, which the pieces of the chat template do "
                    "not know; send rendered text"
                )
            content = message["content"].strip() if self.content[role] == "strip" else message["content"]
            text += content if self.skips_empty_last and last and not content else turn.text + content
        return text + ("" if role is None else self.end[role])

    def _turn(self, after: str | None, role: str, last: bool) -> Turn | None:
        fitting = (
            turn for turn in self.turns if turn.after == after and turn.role == role and turn.last in (None, last)
        )
        return next(fitting, None)
