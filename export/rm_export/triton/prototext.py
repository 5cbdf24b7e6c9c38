"""protobuf's text format, as much of it as config.pbtxt needs; the tests read it back with Triton's own definition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Message = Mapping[str, Any]
"""Field -> text, number, boolean, Constant, Message, or a list of these for a repeated field."""


class Constant(str):
    """The name of an enumeration's value, which is written without quotes."""

    __slots__ = ()


def to_prototext(message: Message) -> str:
    """The message as text, a field a line, in the order of its keys."""
    return "\n".join(_lines(message, "")) + "\n"


def entries(values: Mapping[str, Any]) -> list[Message]:
    """A map field."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _lines(message: Message, indent: str) -> Iterator[str]:
    for name, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(one, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(one)}"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, Constant)):
        return str(value)
    if isinstance(value, str):
        return (
            '"'
            + "".join(
                _ESCAPES.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}") for byte in value.encode()
            )
            + '"'
        )
    raise TypeError(f"{value!r} has no place in a config.pbtxt")


_ESCAPES = {ord('"'): '\\"', ord("\\"): "\\\\"}
