"""How a family turns a conversation into token ids. Part of the manifest: the rendered string is part of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from rm_runtime.errors import BundleError
from rm_runtime.template_pieces import TemplatePieces, Turn

TruncationSide = Literal["left", "right"]


@dataclass(frozen=True)
class ChatPrompt:
    """One conversation -> one row of ids: Jinja template, then tokenizer, then truncation.

    template: Jinja source, rendered as transformers renders chat templates (sandboxed, trim_blocks,
        lstrip_blocks), with `messages` and `variables`.
    variables: what else the template sees (bos_token, eos_token, add_generation_prompt, date_string, ...).
    date: ISO date (YYYY-MM-DD) that `strftime_now` tells, so that a score does not change with the calendar.
    remove_bos_text: delete every occurrence of `bos_token`'s text from the rendered string (pair-pm, RLHFlow training).
    add_special_tokens: let the tokenizer's post-processor add its tokens to the rendered string.
    bos_token_id, bos_count: every prompt begins with exactly bos_count of that id (None: the model has none).
    max_length: most token ids a prompt may have, special ones included.
    truncation_side: the end from which a longer prompt loses tokens.
    required_suffix: ids every untruncated prompt ends in, e.g. pair-pm's assistant header (semantics 2.2).
    pieces: the template without Jinja, for C++; None if it has no such form.
    """

    kind: ClassVar[str] = "chat"

    template: str
    variables: Mapping[str, Any] = field(default_factory=dict)
    date: str = "2024-07-26"
    remove_bos_text: bool = False
    add_special_tokens: bool = False
    bos_token_id: int | None = None
    bos_count: int = 0
    max_length: int = 4096
    truncation_side: TruncationSide = "right"
    required_suffix: tuple[int, ...] = ()
    pieces: TemplatePieces | None = None


@dataclass(frozen=True)
class PairChatPrompt:
    """(context, answer A, answer B) -> one row of ids: the pairwise preference model's single user message.

    context_template: Jinja source that renders the context messages (roles by index parity, semantics 2.2).
    message: str.format template with {context}, {a} and {b}; the text of the one user message.
    chat: how that message becomes ids.
    context_pieces: the context template without Jinja, as ChatPrompt.pieces.
    """

    kind: ClassVar[str] = "pair-chat"

    context_template: str
    message: str
    chat: ChatPrompt
    context_pieces: TemplatePieces | None = None

    @property
    def max_length(self) -> int:
        """Most ids of a row."""
        return self.chat.max_length


@dataclass(frozen=True)
class SegmentsPrompt:
    """(source, candidate 1, candidate 2) -> one row of ids: PairRM's three [CLS] ... [SEP] segments (semantics 5.2).

    source_prefix, candidate1_prefix, candidate2_prefix: texts of the added tokens put before each segment.
    source_max_length: ids of the source segment at most; candidate_max_length: of each candidate, plus half of
        what the longest source of the batch left over.
    replace: literal texts that are replaced by a space before tokenisation ("[SEP]" in LLM-Blender).
    budget: "batch" = LLM-Blender's rule (the longest source of the batch decides), "row" = each row alone.
    truncation_side: always cuts the end of each segment's text in the reference.
    candidate_prefix: what LLM-Blender tokenises every candidate with; wherever its id then stands in a candidate,
        that candidate's own prefix id replaces it. None: candidates are tokenised with their own prefix.
    """

    kind: ClassVar[str] = "segments"

    source_prefix: str = "<|source|>"
    candidate1_prefix: str = "<|candidate1|>"
    candidate2_prefix: str = "<|candidate2|>"
    source_max_length: int = 1224
    candidate_max_length: int = 412
    replace: tuple[str, ...] = ("[SEP]",)
    budget: Literal["batch", "row"] = "batch"
    truncation_side: TruncationSide = "right"
    candidate_prefix: str | None = "<|candidate|>"

    @property
    def max_length(self) -> int:
        """Most ids a row can have: a full source and two full candidates."""
        return self.source_max_length + 2 * self.candidate_max_length


PromptSpec = ChatPrompt | PairChatPrompt | SegmentsPrompt

_KINDS: dict[str, type[Any]] = {spec.kind: spec for spec in (ChatPrompt, PairChatPrompt, SegmentsPrompt)}


def prompt_to_json(spec: PromptSpec) -> dict[str, Any]:
    """The spec as the manifest stores it: its fields plus `kind`."""
    return {"kind": spec.kind, **dataclasses.asdict(spec, dict_factory=_fields)}


def prompt_from_json(fields: Mapping[str, Any]) -> PromptSpec:
    """The inverse of prompt_to_json. Raises BundleError for an unknown kind or unknown or missing fields."""
    values = dict(fields)
    kind = values.pop("kind", None)
    spec_type = _KINDS.get(kind) if isinstance(kind, str) else None
    if spec_type is None:
        raise BundleError(f"unknown prompt kind {kind!r} (known: {', '.join(_KINDS)}); update rm-export")
    if spec_type is PairChatPrompt and isinstance(values.get("chat"), Mapping):
        chat = {name: value for name, value in values["chat"].items() if name != "kind"}
        values["chat"] = _build(ChatPrompt, chat)
    spec: PromptSpec = _build(spec_type, values)
    return spec


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A record as a dict; of a Turn only what it says."""
    is_turn = any(name == "refused" for name, _ in pairs)
    return {name: value for name, value in pairs if not is_turn or value is not None or name == "after"}


def _build(spec_type: type[Any], values: Mapping[str, Any]) -> Any:
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    try:
        for name in ("pieces", "context_pieces"):
            if isinstance(fields.get(name), Mapping):
                turns = tuple(Turn(**turn) for turn in fields[name].get("turns", ()))
                fields[name] = TemplatePieces(**{**fields[name], "turns": turns})
        return spec_type(**fields)
    except TypeError as error:
        raise BundleError(f"prompt spec of kind {spec_type.kind!r}: {error}") from None
