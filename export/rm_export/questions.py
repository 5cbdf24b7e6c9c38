"""What a conversation file asks a model: which rows of ids are scored to judge it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

from rm_runtime.errors import PromptError, RequestError
from rm_runtime.families.pairrm_texts import ranked_texts
from rm_runtime.prompt_spec import ChatPrompt, PairChatPrompt
from rm_runtime.prompts import ChatPrompter, PairChatPrompter, Prompt
from rm_runtime.segments import SegmentsPrompter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from rm_calibration.conversations import Example
    from rm_export.parity import ScoredRow
    from rm_runtime.prompt_spec import PromptSpec
    from rm_runtime.segments import Segments


@dataclass(frozen=True)
class Question:
    """What is scored: one response of example `line`, two of them in this order, or (none) the example."""

    line: int
    responses: tuple[int, ...]


def questions_of(examples: Sequence[Example], pairwise: bool) -> list[Question]:
    """Pointwise: every response, or the example itself. Pairwise: every pair of responses, in both orders."""
    questions = []
    for line, example in enumerate(examples):
        places = range(len(example.responses))
        asked = [*permutations(places, 2)] if pairwise else [*permutations(places, 1)] or [()]
        questions += [Question(line, responses) for responses in asked]
    return questions


def both_orders(asked: Sequence[Question | ScoredRow]) -> list[tuple[int, int]]:
    """Of pairwise questions: (row, row with the two responses exchanged), each pair of responses once."""
    place = {(one.line, *one.responses): row for row, one in enumerate(asked)}
    return [
        (row, place[line, second, first])
        for (line, first, second), row in place.items()
        if first < second and (line, second, first) in place
    ]


def encode_questions(
    spec: PromptSpec, tokenizer: Tokenizer, examples: Sequence[Example], questions: Sequence[Question]
) -> Sequence[Prompt | PromptError]:
    """The runtime's own prompts, one a question. Raises RequestError if a pairwise family has nothing to compare."""
    if isinstance(spec, ChatPrompt):
        conversations = [examples[asked.line].conversation(*asked.responses) for asked in questions]
        return ChatPrompter(spec, tokenizer).encode(conversations)
    if not questions:
        raise RequestError("a pairwise family needs conversations with at least two responses; there is none")
    if isinstance(spec, PairChatPrompt):
        pairs = []
        for asked in questions:
            example = examples[asked.line]
            pairs.append((example.messages, *(example.responses[place] for place in asked.responses)))
        return PairChatPrompter(spec, tokenizer).encode(pairs)
    prompter = SegmentsPrompter(spec, tokenizer)
    groups = {line: _segments(prompter, examples[line]) for line in {asked.line for asked in questions}}
    prompts: list[Prompt | PromptError] = []
    for asked in questions:
        group = groups[asked.line]
        prompts.append(group if isinstance(group, PromptError) else group.row(*asked.responses))
    return prompts


def _segments(prompter: SegmentsPrompter, example: Example) -> Segments | PromptError:
    """One example as a batch of its own, as PairRM.rank(messages, responses) makes it."""
    try:
        group = ranked_texts(list(example.messages), list(example.responses))
    except PromptError as error:
        return error
    return prompter.encode([group])[0]
