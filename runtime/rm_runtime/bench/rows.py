"""The rows of ids that are measured: chats through the bundle's own prompter, so that the graph can score each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_runtime.bench.chats import WORDS, Chat, distribution, draw_chats
from rm_runtime.errors import PromptError, RequestError
from rm_runtime.families.pairrm_texts import ranked_texts
from rm_runtime.json_requests import parse_json, parse_request
from rm_runtime.prompt_spec import ChatPrompt, PairChatPrompt
from rm_runtime.prompts import ChatPrompter, PairChatPrompter
from rm_runtime.segments import SegmentsPrompter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from rm_runtime.bundle import Bundle
    from rm_runtime.tokenization import Prompt

LONGEST = 2048
"""Ids a built-in chat may have, if the bundle does not cut prompts earlier."""

IDS_PER_WORD = 1.3
"""Of English text under a tokenizer of 32,000 to 128,000 pieces, roughly."""

_TEMPLATE_IDS = 64
"""Room that a prompt template may take beside the messages."""

_MIN_ROOM = 64
"""Chats of fewer ids are too rare to draw; a bundle of shorter prompts has them cut."""


@dataclass(frozen=True)
class Rows:
    """ids: int64 [tokens] each. origin: where their chats came from and how long they were drawn.

    requests: the JSON by which a server is asked for each. estimated: their lengths where no tokenizer is at hand, and
    so no ids.
    """

    ids: tuple[NDArray[np.int64], ...]
    origin: dict[str, Any]
    requests: tuple[str, ...]
    estimated: tuple[int, ...] = ()

    @property
    def lengths(self) -> list[int]:
        """Ids a row has."""
        return [len(row) for row in self.ids] or list(self.estimated)

    def described(self) -> dict[str, Any]:
        """Count, lengths in ids and a digest that tells whether two runs measured the same rows."""
        lengths = sorted(self.lengths)
        digest = hashlib.sha256()
        for row in self.ids:
            digest.update(len(row).to_bytes(8, "little") + row.astype("<i8").tobytes())
        for request in () if self.ids else self.requests:
            digest.update(request.encode() + b"\n")
        return {
            "count": len(lengths),
            "tokens": sum(lengths),
            "shortest": lengths[0],
            "median": lengths[len(lengths) // 2],
            "longest": lengths[-1],
            "sha256": digest.hexdigest(),
        }


def rows_of(bundle: Bundle, count: int, seed: int, chats: Path | None = None) -> Rows:
    """`count` rows: a conversation each, or for pairwise families one comparison of two answers in one order.

    chats: a JSONL file as `rm-runtime score` reads it, used from its top and again if it is shorter; None = chats drawn
    as in rm_runtime.bench.chats. PairRM cuts its segments, as it does in use. Raises RequestError for a file that
    cannot be used, naming the line.
    """
    encode = _encoder(bundle)
    answers = 1 if isinstance(bundle.manifest.prompt, ChatPrompt) else 2
    if chats is not None:
        found = _read_chats(chats, count, answers)
        prompts = encode([chat for _, chat in found])
        for (line, _), prompt in zip(found, prompts, strict=True):
            if isinstance(prompt, PromptError):
                raise RequestError(f"{chats}, line {line}: {prompt}")
        ids = [prompt.ids for prompt in prompts if not isinstance(prompt, PromptError)]
        again = [place % len(ids) for place in range(count)]
        requests = tuple(found[place][1].request() for place in again)
        return Rows(tuple(ids[place] for place in again), {"source": str(chats)}, requests)
    spec = bundle.manifest.prompt
    limit = (spec.chat if isinstance(spec, PairChatPrompt) else spec).max_length
    longest = max(min(LONGEST, limit) - _TEMPLATE_IDS, _MIN_ROOM)
    ids_per_word = len(bundle.tokenizer().encode(" ".join(WORDS), add_special_tokens=False).ids) / len(WORDS)
    drawn = draw_chats(count, answers, ids_per_word, longest, seed)
    prompts = encode(drawn)
    failed = next((prompt for prompt in prompts if isinstance(prompt, PromptError)), None)
    if failed is not None:
        raise RequestError(f"{bundle.path} cannot read the built-in chats ({failed}); pass your own with --chats")
    ids = [prompt.ids for prompt in prompts if not isinstance(prompt, PromptError)]
    return Rows(tuple(ids), {**distribution(), "longest": longest}, tuple(chat.request() for chat in drawn))


def rows_without_bundle(count: int, answers: int, seed: int, chats: Path | None = None) -> Rows:
    """`count` rows for a server whose tokenizer is not at hand: lengths in ids are estimated by their words.

    answers: 1 for models that score a conversation, 2 for those that compare. Otherwise as rows_of.
    """
    if chats is None:
        drawn = draw_chats(count, answers, IDS_PER_WORD, LONGEST - _TEMPLATE_IDS, seed)
        origin: dict[str, Any] = distribution()
    else:
        found = [chat for _, chat in _read_chats(chats, count, answers)]
        drawn = [found[place % len(found)] for place in range(count)]
        origin = {"source": str(chats)}
    estimated = tuple(round(IDS_PER_WORD * _words(chat)) for chat in drawn)
    return Rows((), {**origin, "ids_per_word": IDS_PER_WORD}, tuple(chat.request() for chat in drawn), estimated)


def _words(chat: Chat) -> int:
    texts = [str(message.get("content", "")) for message in chat.messages if isinstance(message, dict)]
    return sum(len(text.split()) for text in (*texts, *chat.responses))


def _encoder(bundle: Bundle) -> Callable[[Sequence[Chat]], Sequence[Prompt | PromptError]]:
    spec, tokenizer = bundle.manifest.prompt, bundle.tokenizer()
    if isinstance(spec, ChatPrompt):
        prompter = ChatPrompter(spec, tokenizer)
        return lambda chats: prompter.encode(
            [[*chat.messages, *({"role": "assistant", "content": text} for text in chat.responses)] for chat in chats]
        )
    if isinstance(spec, PairChatPrompt):
        pair_prompter = PairChatPrompter(spec, tokenizer)
        return lambda chats: pair_prompter.encode([(chat.messages, *chat.responses[:2]) for chat in chats])
    segments_prompter = SegmentsPrompter(spec, tokenizer)
    return lambda chats: [_pair_row(segments_prompter, chat) for chat in chats]


def _pair_row(prompter: SegmentsPrompter, chat: Chat) -> Prompt | PromptError:
    try:
        (group,) = prompter.encode([ranked_texts(list(chat.messages), list(chat.responses))])
    except PromptError as error:
        return error
    return group if isinstance(group, PromptError) else group.row(0, 1)


def _read_chats(path: Path, count: int, answers: int) -> list[tuple[int, Chat]]:
    """At most `count` chats, each with the line it stands in."""
    chats: list[tuple[int, Chat]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if len(chats) >= count:
                break
            if line.strip():
                try:
                    chats += [(number, chat) for chat in _chats_of(line, answers)]
                except RequestError as error:
                    raise RequestError(f"{path}, line {number}: {error}") from None
    if not chats:
        raise RequestError(f"{path} holds no chat; write lines of {{'messages': [...], 'responses': [...]}}")
    return chats[:count]


def _chats_of(line: bytes, answers: int) -> list[Chat]:
    request = parse_request(parse_json(line))
    if request.messages is None:
        raise RequestError('a chat to measure needs "messages"')
    if answers == 1:
        answered = [(text,) for text in request.responses] if request.responses else [()]
        return [Chat(tuple(request.messages), responses) for responses in answered]
    if request.responses is None or len(request.responses) < 2:
        raise RequestError('this bundle compares answers: "responses" must hold two')
    return [Chat(tuple(request.messages), tuple(request.responses[:2]))]
