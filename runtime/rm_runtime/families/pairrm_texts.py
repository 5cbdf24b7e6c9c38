"""Conversations as PairRM reads them: one source text, and one text a candidate. Source: LLM-Blender blender.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rm_runtime.errors import PromptError, RequestError
from rm_runtime.templates import validate_conversation, validate_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Turns = Sequence[Mapping[str, str]]

MULTI_TURN_INSTRUCTION = (
    "Finish the following coversation in each i-th turn by filling in <Response i> with your response."
)
"""LLM-Blender's words, its spelling included: the model was asked with them."""


def source_text(user_turns: Sequence[str]) -> str:
    """The source of a several-turn comparison, after its instruction."""
    return "\n".join(f"USER: {turn}\nAssistant: <Response {number}>" for number, turn in enumerate(user_turns, start=1))


def candidate_text(answers: Sequence[str]) -> str:
    """A candidate of a several-turn comparison: all its answers."""
    return "\n".join(f"<Response {number}>: {answer}" for number, answer in enumerate(answers, start=1))


def compared_texts(
    conversations_a: Sequence[Turns], conversations_b: Sequence[Turns]
) -> tuple[list[str], list[str], list[str]]:
    """LLM-Blender's compare_conversations: inputs, candidates A and candidates B.

    Roles must be USER and ASSISTANT in turn, an even number of them, and both conversations of a pair must
    have the same user turns; RequestError names the pair that does not.
    """
    if len(conversations_a) != len(conversations_b):
        raise RequestError(f"{len(conversations_a)} conversations cannot be compared with {len(conversations_b)}")
    inputs, candidates_a, candidates_b = [], [], []
    for number, pair in enumerate(zip(conversations_a, conversations_b, strict=True)):
        (user_a, answers_a), (user_b, answers_b) = (_halves(turns, f"conversation {number}") for turns in pair)
        if user_a != user_b:
            raise RequestError(f"conversation {number}: the USER turns of both sides must be the same")
        inputs.append(source_text(user_a))
        candidates_a.append(candidate_text(answers_a))
        candidates_b.append(candidate_text(answers_b))
    return inputs, candidates_a, candidates_b


def ranked_texts(messages: object, responses: object) -> tuple[str, list[str]]:
    """A chat up to its answer, and the answers -> source text, candidate texts.

    LLM-Blender knows inputs and whole conversations, not chats; this is how it would be asked. One user
    turn is the input itself and the responses are the candidates. A longer chat becomes what
    compare_conversations makes of the conversations that end in each response. The text of a leading system
    message is the instruction: it comes first, without a separator, as LLM-Blender joins instructions.

    Raises PromptError if the messages are not user and assistant in turn, ending in the user's.
    """
    if isinstance(responses, str) or not isinstance(responses, (list, tuple)) or not responses:
        raise RequestError("responses must be a list of at least one text")
    answers = [validate_text(response, f"response {place}") for place, response in enumerate(responses)]
    turns = validate_conversation(messages)
    system = turns[0]["content"] if turns[0]["role"] == "system" else ""
    turns = turns[1:] if turns[0]["role"] == "system" else turns
    for place, turn in enumerate(turns):
        expected = ("user", "assistant")[place % 2]
        if turn["role"] != expected:
            raise PromptError(f"turn {place} has the role {turn['role']!r}; PairRM needs {expected} there")
    if len(turns) % 2 == 0:
        raise PromptError("the messages must end in the user's turn that the responses answer")
    texts = [turn["content"] for turn in turns]
    if len(texts) == 1:
        return system + texts[0], answers
    source = MULTI_TURN_INSTRUCTION + source_text(texts[::2])
    return system + source, [candidate_text([*texts[1::2], answer]) for answer in answers]


def _halves(turns: Turns, where: str) -> tuple[list[str], list[str]]:
    """A conversation's user turns and answers."""
    if len(turns) % 2:
        raise RequestError(f"{where} has {len(turns)} turns; each user turn needs an answer")
    for place, turn in enumerate(turns):
        expected = ("USER", "ASSISTANT")[place % 2]
        if turn.get("role") != expected:
            raise RequestError(f"{where}: turn {place} has the role {turn.get('role')!r}, not {expected!r}")
    texts = [validate_text(turn.get("content"), f"turn {place} of {where}") for place, turn in enumerate(turns)]
    return texts[::2], texts[1::2]
