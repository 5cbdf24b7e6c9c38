"""YAML as far as recipes use it: plain values, no aliases, no key twice, numbers that survive the round trip."""

from __future__ import annotations

from typing import Any

import yaml

from rm_calibration.errors import CalibrationError

_LARGEST_TEXT = 64 * 1024 * 1024

_OTHER_BREAKS = frozenset("\r\x85\u2028\u2029")

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's where the wheel has it, many times faster


class _Dumper(yaml.SafeDumper):
    """Strings of several lines as literal blocks; YAML's own other line breaks escaped, or they would become blanks."""


def _string_node(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = '"' if _OTHER_BREAKS.intersection(text) else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _string_node)


def write_yaml(document: dict[str, Any]) -> str:
    """The text of plain dicts, strings and numbers in the given order; floats in Python's shortest form."""
    text: str = yaml.dump(
        document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000, default_flow_style=False
    )
    return text


def read_yaml(text: str | bytes, where: str) -> Any:
    """The document as plain Python values, tags other than YAML's own refused.

    Raises CalibrationError, in one line that names `where`, if it is not YAML, holds an alias (a small file could
    stand for an endless one), a key twice (one of the two would be lost), or is beyond 64 MiB.
    """
    if len(text) > _LARGEST_TEXT:
        raise CalibrationError(f"{where} has {len(text)} characters; a recipe has less than {_LARGEST_TEXT}")
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _check_nodes(root, where)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CalibrationError(f"{where} is not YAML ({reason:.300}); calibrate again") from None


def _check_nodes(root: yaml.Node, where: str) -> None:
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        line = node.start_mark.line + 1
        if id(node) in seen:
            raise CalibrationError(f"{where}, line {line}: YAML aliases are refused; write the value out")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
            if twice is not None:
                raise CalibrationError(f"{where}, line {line}: {twice!r} stands twice in one mapping; remove one")
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
