"""Conversation -> rendered string: chat templates as transformers 5.23 renders them, without transformers.

The rules are those of `transformers.utils.chat_template_utils` (same Jinja options, filters and globals),
with two differences on purpose: the date is the prompt spec's, never the clock's, and nothing random is
offered. Templates come from untrusted checkpoints, so they run in Jinja's immutable sandbox.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rm_runtime.errors import PromptError

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.nodes import CallBlock
    from jinja2.parser import Parser
    from jinja2.runtime import Context
    from jinja2.sandbox import SandboxedEnvironment

    from rm_runtime.prompt_spec import ChatPrompt

Messages = Sequence[Mapping[str, str]]
"""A conversation: one {"role": str, "content": str} a message, oldest first."""

_LARGEST_REPETITION = 10_000_000
_LARGEST_POWER_BITS = 10_000
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def validate_conversation(messages: object) -> list[dict[str, str]]:
    """A fresh copy of `messages` as plain dicts of plain strings.

    Raises PromptError, naming the message and the type found, unless `messages` is a non-empty list of
    {"role": str, "content": str} whose texts can be encoded as UTF-8 (no lone surrogates).
    """
    if not isinstance(messages, (list, tuple)):
        raise PromptError(f"a conversation is a list of messages, not {_type_name(messages)}")
    if not messages:
        raise PromptError("the conversation is empty; it needs at least one message")
    return [_validate_message(message, f"message {index}") for index, message in enumerate(messages)]


def validate_text(text: object, where: str) -> str:
    """`text` as a plain string; PromptError naming `where` if it is no string or holds a lone surrogate."""
    if not isinstance(text, str):
        raise PromptError(f"{where} must be a string, not {_type_name(text)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        surrogate = f"U+{ord(text[error.start]):04X}"
        raise PromptError(
            f"{where} holds the lone surrogate {surrogate} at character {error.start}; send valid Unicode"
        ) from None
    return str.__str__(text)


def render_chat(spec: ChatPrompt, messages: Messages) -> str:
    """The template's text for one conversation, byte for byte what transformers' `apply_chat_template` gives.

    `tools` and `documents` are None and `add_generation_prompt` is False unless `spec.variables` says
    otherwise; `strftime_now` and the default of `date_string` ("26 Jul 2024") tell `spec.date`. Nothing is
    removed from the text here (see ChatPrompt.remove_bos_text).

    Raises PromptError if the template is not valid, refuses the conversation, or does what the sandbox
    forbids.
    """
    return render_template(spec.template, messages, spec.date, spec.variables)


def render_template(
    template: str, messages: Messages, date: str, variables: Mapping[str, Any] = MappingProxyType({})
) -> str:
    """`template` with `messages` and `variables`; `date` is ISO. Raises PromptError as `render_chat` does."""
    compiled, day = compile_template(template), _pinned_date(date)
    conversation = validate_conversation(messages)
    pinned = {"strftime_now": _strftime(day), "date_string": _strftime(day)("%d %b %Y")}
    defaults = {"tools": None, "documents": None, "add_generation_prompt": False}
    try:
        return compiled.render({**defaults, **pinned, **variables, "messages": conversation})
    except Exception as error:  # a template is foreign code: whatever it raises is its error, not ours
        raise PromptError(f"the chat template failed: {_cause(error)}") from None


@lru_cache(maxsize=64)
def compile_template(template: str) -> Template:
    """The compiled template; PromptError naming the line if Jinja cannot parse it."""
    import jinja2

    try:
        return _environment().from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise PromptError(f"the chat template is not valid Jinja, line {error.lineno}: {_cause(error)}") from None
    except Exception as error:  # RecursionError of deep nesting, OverflowError of a folded constant, ...
        raise PromptError(f"the chat template cannot be compiled: {_cause(error)}") from None


def _validate_message(message: object, where: str) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise PromptError(f'{where} must be {{"role": ..., "content": ...}}, not {_type_name(message)}')
    for key in ("role", "content"):
        if key not in message:
            raise PromptError(f"{where} has no {key!r}")
    unknown = next((key for key in message if key not in ("role", "content")), None)
    if unknown is not None:
        raise PromptError(f"{where} has the unknown key {unknown!r}; only 'role' and 'content' are scored")
    return {key: validate_text(message[key], f"the {key} of {where}") for key in ("role", "content")}


def _type_name(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _cause(error: Exception) -> str:
    """The error on one line: Jinja's own errors by their message, others with their type before it."""
    message = " ".join(str(error).split())
    if not type(error).__module__.startswith("jinja2") or not message:
        message = f"{type(error).__name__}: {message}".rstrip(": ")
    return message if len(message) <= 300 else f"{message[:300]}..."


def _pinned_date(date: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(date)
    except (TypeError, ValueError):
        raise PromptError(f"the prompt spec's date is {date!r}, not an ISO date like 2024-07-26") from None


def _strftime(day: datetime.datetime) -> Callable[[str], str]:
    """`strftime` of one day with English names, so that the process's locale changes no prompt."""
    weekday, month = _WEEKDAYS[day.weekday()], _MONTHS[day.month - 1]
    names = {"%A": weekday, "%a": weekday[:3], "%B": month, "%b": month[:3], "%h": month[:3]}

    def strftime_now(format: str) -> str:
        return day.strftime(re.sub("%.", lambda found: names.get(found[0], found[0]), format, flags=re.DOTALL))

    return strftime_now


@lru_cache(maxsize=1)
def _environment() -> SandboxedEnvironment:
    """The Jinja environment of transformers 5.23's `_compile_jinja_template`, with its hardening."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """`{% generation %}...{% endgeneration %}` marks text for training; here it only renders."""

        tags = {"generation"}  # noqa: RUF012 - the name and type Jinja's Extension declares

        def parse(self, parser: Parser) -> CallBlock:
            lineno = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_render_body")
            block = jinja2.nodes.CallBlock(call, [], [], body)
            block.set_lineno(lineno)
            return block

        def _render_body(self, caller: Callable[[], str]) -> str:
            return caller()

    class Sandbox(ImmutableSandboxedEnvironment):
        """Also refuses `*` and `**` that would fill the memory, which Jinja would compute while compiling."""

        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" and _power_bits(left, right) > _LARGEST_POWER_BITS:
                raise jinja2.exceptions.SecurityError("refused to compute so large a power")
            if operator == "*" and _repetition(left, right) > _LARGEST_REPETITION:
                raise jinja2.exceptions.SecurityError("refused to repeat a text or list that often")
            return super().call_binop(context, operator, left, right)

    class Namespace(jinja2.utils.Namespace):
        """Jinja's namespace without underscore names, which lead into Python's internals."""

        def __init__(*args: Any, **kwargs: Any) -> None:  # no named self: `namespace(self=...)` is legal
            attributes = dict(*args[1:], **kwargs)
            for name in attributes:
                _refuse_underscore(name)
            jinja2.utils.Namespace.__init__(args[0], attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_underscore(name)
            super().__setitem__(name, value)

    def _refuse_underscore(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the underscore name {name!r}")

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=raise_exception, dict=_TemplateDict(), namespace=Namespace)
    del environment.globals["lipsum"], environment.filters["random"]  # a prompt is never random
    return environment


class _TemplateDict:
    """The `dict` that templates see: callable, without the type's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own `tojson` escapes HTML; transformers' does not."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _repetition(left: Any, right: Any) -> int:
    """Length of `left * right` where one is a text, list or tuple and the other a count; else 0."""
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
            return len(sequence) * count
    return 0


def _power_bits(base: Any, exponent: Any) -> int:
    """About how many bits `base ** exponent` has; 0 unless both are integers."""
    if isinstance(base, int) and isinstance(exponent, int):
        return base.bit_length() * abs(exponent)
    return 0
