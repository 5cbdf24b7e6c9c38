"""Chat template -> TemplatePieces: asked with marked contents in every order of roles, then compared on many chats."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rm_export.errors import ExportError
from rm_runtime.errors import PromptError
from rm_runtime.prompt_spec import ChatPrompt, PairChatPrompt, PromptSpec
from rm_runtime.template_pieces import ContentRule, NotInPiecesError, TemplatePieces, Turn
from rm_runtime.templates import render_chat, render_template

Messages = Sequence[Mapping[str, str]]
Render = Callable[[Messages], str]

ROLES = ("system", "user", "assistant")
LONGEST_PROBE = 4
CHATS_COMPARED = 600

_ALL_ORDERS = [order for length in range(1, LONGEST_PROBE + 1) for order in itertools.product(ROLES, repeat=length)]
_PLACES = [("even", "odd", "even", "odd")[:length] for length in range(1, LONGEST_PROBE + 1)]

_PADDING = " \t\n"
_CONTENTS = (
    *(
        "",
        " ",
        "\n\n",
        "\t x \n",
        "a",
        "Hello there!",
        "two\nlines\n",
        "\u3000wide\u00a0spaces\u2003",
        "\x1cseparators\x1f",
    ),
    *(
        "\u200bzero width\u200b",
        "Ünïcödé, 漢字, العربية 👩‍👩‍👧",
        "{{ braces }} {% raw %} {# x #}",
        "<b>&amp;</b> \"'\\",
        "0",
    ),
    *(
        "def f(x):\n    return x\n",
        "word " * 300,
        "user",
        "assistant",
        "system",
        "None",
        "a\r\nb\rc",
        "\ue000private\uf8ff",
    ),
)


class NotCompilableError(ExportError):
    """The template is no plain list of pieces; the message says what it depends on."""


def with_pieces(prompt: PromptSpec) -> PromptSpec:
    """The spec with the pieces of its templates, where they have them."""
    if isinstance(prompt, ChatPrompt):
        return dataclasses.replace(prompt, pieces=_pieces_or_none(prompt))
    if isinstance(prompt, PairChatPrompt):
        chat = dataclasses.replace(prompt.chat, pieces=_pieces_or_none(prompt.chat))
        return dataclasses.replace(prompt, chat=chat, context_pieces=_context_pieces_or_none(prompt))
    return prompt


def why_not_in_pieces(prompt: PromptSpec) -> str | None:
    """Why a bundle's prompt has no pieces, None if it has or needs none."""
    try:
        if isinstance(prompt, ChatPrompt) and prompt.pieces is None:
            chat_pieces(prompt)
        elif isinstance(prompt, PairChatPrompt) and (prompt.chat.pieces is None or prompt.context_pieces is None):
            chat_pieces(prompt.chat)
            context_pieces(prompt)
        else:
            return None
    except NotCompilableError as failure:
        return str(failure)
    return "the bundle was exported before chat templates were written as pieces; export it again"


def chat_pieces(spec: ChatPrompt) -> TemplatePieces:
    """The pieces of a chat template with its variables and its date. Raises NotCompilableError."""
    return compiled(lambda messages: render_chat(spec, messages), [spec.template, *spec.variables.values()])


def context_pieces(spec: PairChatPrompt) -> TemplatePieces:
    """The pieces of a pair prompt's context template. Raises NotCompilableError."""
    template, date = spec.context_template, spec.chat.date
    return compiled(lambda messages: render_template(template, messages, date), [template])


def compiled(render: Render, written: Sequence[Any]) -> TemplatePieces:
    """The pieces that render every chat as `render` does, errors included; what they do not know they refuse.

    written: the template and its variables; texts in them become contents of the chats that are compared, since a
    template may look for them. Raises NotCompilableError, which says where the pieces fail.
    """
    if _asks_no_roles(render):
        return _compared(_probed(render, "parity", _PLACES), render, written)
    try:
        return _compared(_probed(render, "named", _ALL_ORDERS), render, written)
    except NotCompilableError:  # often only of chats that nobody writes: a system message in the middle
        return _compared(
            _probed(render, "named", [order for order in _ALL_ORDERS if _is_plain(order)]), render, written
        )


def _compared(pieces: TemplatePieces, render: Render, written: Sequence[Any]) -> TemplatePieces:
    for messages in _chats(written):
        expected, got = _outcome(render, messages), _outcome(pieces.render, messages)
        if expected != got and (got[0] != "unknown" or _is_plain([message["role"] for message in messages])):
            shown = [(message["role"], message["content"][:40]) for message in messages]
            raise NotCompilableError(f"the chat template depends on more than roles and their order: {shown}"[:400])
    return pieces


def _pieces_or_none(spec: ChatPrompt) -> TemplatePieces | None:
    try:
        return chat_pieces(spec)
    except NotCompilableError:
        return None


def _context_pieces_or_none(spec: PairChatPrompt) -> TemplatePieces | None:
    try:
        return context_pieces(spec)
    except NotCompilableError:
        return None


def _outcome(render: Render, messages: Messages) -> tuple[str, str]:
    try:
        return "text", render(messages)
    except NotInPiecesError as error:
        return "unknown", str(error)
    except PromptError as error:
        return "error", str(error)


def _is_plain(roles: Sequence[str]) -> bool:
    """Whether it is a chat as everybody writes it: perhaps a system message, then user and assistant in turn."""
    turns = roles[1:] if roles[0] == "system" else roles
    return bool(turns) and all(role == ("user", "assistant")[place % 2] for place, role in enumerate(turns))


def _mark(place: int) -> str:
    return f"zq{place}xqz"


def _marked(roles: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": role, "content": _mark(place)} for place, role in enumerate(roles)]


def _asks_no_roles(render: Render) -> bool:
    outcomes = {_outcome(render, _marked(roles)) for roles in itertools.product(ROLES, repeat=3)}
    return len(outcomes) == 1


def _probed(render: Render, roles: Any, orders: Sequence[tuple[str, ...]]) -> TemplatePieces:
    """What the template writes around marked contents in these orders of roles, shorter ones first."""
    texts: dict[tuple[str | None, str, bool], Turn] = {}
    end: dict[str, str] = {}
    content: dict[str, ContentRule] = {}
    refused: set[tuple[str, ...]] = set()
    for order in orders:
        if order[:-1] in refused:
            refused.add(order)
            continue
        pairs = list(zip((None, *order), order, strict=False))
        kind, text = _outcome(render, _marked(order))
        if kind == "error":
            refused.add(order)
            for last in (False, True):
                _agree(texts, (*pairs[-1], last), Turn(*pairs[-1], refused=text))
            continue
        parts = _cut_at_marks(text, len(order))
        if parts is None:
            if _is_plain(order) or roles == "parity":
                raise NotCompilableError("the chat template does not write each content once, in order")
            continue
        *before, after = parts
        for place, (pair, written) in enumerate(zip(pairs, before, strict=True)):
            _agree(texts, (*pair, place == len(order) - 1), Turn(*pair, text=written))
        if end.setdefault(order[-1], after) != after:
            raise NotCompilableError(
                f"what the chat template writes after a last message of {order[-1]} depends on more"
            )
        for place, role in enumerate(order):
            content.setdefault(role, _content_rule(render, order, place))
    if not content:
        raise NotCompilableError(f"the chat template refuses every order of {', '.join(ROLES)}")
    pieces = TemplatePieces(tuple(_turns(texts)), content, end, roles)
    return dataclasses.replace(pieces, skips_empty_last=_skips_empty_last(render, pieces))


def _agree(texts: dict[tuple[str | None, str, bool], Turn], key: tuple[str | None, str, bool], turn: Turn) -> None:
    if texts.setdefault(key, turn) != turn:
        raise NotCompilableError(
            f"what the chat template writes before a message of {turn.role} after {turn.after or 'nothing'} depends "
            "on more"
        )


def _cut_at_marks(text: str, count: int) -> list[str] | None:
    """What stands before each content, and after the last; None if they do not all stand there once and in order."""
    parts = []
    for place in range(count):
        before, found, text = text.partition(_mark(place))
        if not found or any(_mark(other) in before for other in range(count)):
            return None
        parts.append(before)
    return [*parts, text]


def _content_rule(render: Render, order: Sequence[str], place: int) -> ContentRule:
    messages = _marked(order)
    plain = _outcome(render, messages)
    messages[place]["content"] = f"{_PADDING}{_mark(place)}{_PADDING}"
    return "strip" if _outcome(render, messages) == plain else "keep"


def _turns(texts: Mapping[tuple[str | None, str, bool], Turn]) -> Iterator[Turn]:
    """One turn where it makes no difference, or was not seen, whether the message is the last; otherwise two."""
    for (after, role, last), turn in texts.items():
        other = texts.get((after, role, not last), turn)
        if other != turn:
            yield dataclasses.replace(turn, last=last)
        elif last or (after, role, True) not in texts:
            yield turn


def _skips_empty_last(render: Render, pieces: TemplatePieces) -> bool:
    """True if that, and not the plain rule, explains what an empty last message gives."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]
    skipping = dataclasses.replace(pieces, skips_empty_last=True)
    expected = _outcome(render, messages)
    return expected == _outcome(skipping.render, messages) != _outcome(pieces.render, messages)


def _chats(written: Sequence[Any]) -> Iterator[list[dict[str, str]]]:
    """Every short order of roles, and many chats of any length, with contents that lead templates into temptation."""
    contents = [*_CONTENTS, *dict.fromkeys(text for source in written for text in _texts_in(source))]
    chance = random.Random(0)

    def content() -> str:
        drawn = chance.choice(contents)
        return drawn if chance.random() < 0.6 else chance.choice((f" {drawn}\n", f"so: {drawn} :so", drawn + drawn))

    for order in _ALL_ORDERS:
        yield [{"role": role, "content": content()} for role in order]
    for text in contents:
        for order in (("user", "assistant"), ("user", "assistant", "user", "assistant"), ("user",)):
            yield [{"role": role, "content": text} for role in order]
    for number in range(CHATS_COMPARED):
        length = chance.randint(1, 12)
        turns = [("user", "assistant")[place % 2] for place in range(length)]
        turns = ["system", *turns] if number % 3 == 0 else turns
        yield [{"role": role, "content": content()} for role in turns]


def _texts_in(source: Any) -> Iterator[str]:
    """Literals and plain parts of a template, or the text that a variable is."""
    if not isinstance(source, str):
        return
    import jinja2

    if "{" not in source:
        yield source
        return
    for token in jinja2.Environment(trim_blocks=True, lstrip_blocks=True).lexer.tokenize(source):
        if token.type in ("string", "data") and token.value.strip():
            yield token.value
