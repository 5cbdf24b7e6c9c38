"""Write include/rm_runtime/unicode_tables.hpp: what the package `tokenizers` knows about every code point, asked of it.

Each of its parts has Unicode tables of another age (letters of Unicode 16, composition of Unicode 9), and ids are equal
only if ours are the same. So they are not taken from a library, but read off its answers.
"""

from __future__ import annotations

import base64
import json
import struct
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

HEADER = Path(__file__).parent.parent / "include" / "rm_runtime" / "unicode_tables.hpp"
CODE_POINTS = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
ACUTE, OVERLAY, COMMA_ABOVE_RIGHT = "\u0301", "\u0334", "\u0315"
"""Combining marks of the classes 230, 1 and 232."""

Table = tuple[str, str, Collection[int]]


def in_class(expression: str) -> set[int]:
    """Code points that the regular expression matches, in the engine behind Split and Replace."""
    splitter = pre_tokenizers.Split(Regex(expression), "removed")
    kept = {ord(char) for piece, _ in splitter.pre_tokenize_str("".join(map(chr, CODE_POINTS))) for char in piece}
    return {code for code in CODE_POINTS if code not in kept}


def composing() -> set[int]:
    """Code points that NFC may move, take apart, or put together with others."""
    nfc, nfd = normalizers.NFC(), normalizers.NFD()
    active = set()
    for code in CODE_POINTS:
        moved = f"a{COMMA_ABOVE_RIGHT}{chr(code)}{OVERLAY}"
        if nfc.normalize_str(moved) != moved:
            active.add(code)
        if (parts := nfd.normalize_str(chr(code))) != chr(code):
            active.update([code, *map(ord, parts)])
    return active


def replacing(key: bytes) -> Callable[[str], str]:
    """A sentencepiece normaliser whose map holds one key, which becomes "b": its text shows where clusters end."""
    units = [0] * 1024  # a double array that is one path: unit i leads to the unit (i ^ offset ^ byte)
    place = 0
    for depth, byte in enumerate(key):
        base = 256 * (depth + 1) if depth < 2 else 256 * 3
        units[place] |= (place ^ base) << 10
        place = base ^ byte
        units[place] = byte
    units[place] |= (place ^ 0x3FF) << 10 | 1 << 8
    units[0x3FF] = 1 << 31
    array = struct.pack(f"<{len(units)}I", *units)
    charsmap = struct.pack("<I", len(array)) + array + b"b\0"
    tokenizer = json.loads(Tokenizer(models.BPE()).to_str())
    tokenizer["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    normalise: Callable[[str], str] = Tokenizer.from_str(json.dumps(tokenizer)).normalizer.normalize_str
    assert normalise(key.decode()) == "b"
    return normalise


def tables() -> list[Table]:
    """Name, meaning and code points of each table."""
    of_a = replacing(b"a")
    joining = {code for code in CODE_POINTS if of_a(f"a{chr(code)}") == "b" and chr(code) != "\0"}
    prepending = {code for code in CODE_POINTS if of_a(f"{chr(code)}a{ACUTE}").endswith(ACUTE)}
    alone = {
        code
        for code in CODE_POINTS
        if 0 < code < 0x10000 and code not in joining and replacing(chr(code).encode())(f"{chr(code)}{ACUTE}") != "b"
    }
    return [
        ("letters", r"\p{L}", in_class(r"\p{L}")),
        ("numbers", r"\p{N}", in_class(r"\p{N}")),
        ("marks", r"\p{M}", in_class(r"\p{M}")),
        ("composing", "may change, move or combine under NFC", composing()),
        ("joining", "belong to the grapheme cluster before them", joining),
        ("prepending", "begin a grapheme cluster with what follows", prepending),
        ("standing_alone", "below U+10000: are a grapheme cluster whatever follows", alone),
    ]


def ranges_of(codes: Collection[int]) -> list[tuple[int, int]]:
    """Sorted (first, last) pairs that cover exactly `codes`."""
    ranges: list[tuple[int, int]] = []
    for code in sorted(codes):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1] = (ranges[-1][0], code)
        else:
            ranges.append((code, code))
    return ranges


def header() -> str:
    """The text of unicode_tables.hpp."""
    parts = [
        "// Written by runtime/cpp/tools/make_unicode_tables.py from the answers of the package `tokenizers`.\n"
        "#pragma once\n\nnamespace rm_runtime::unicode {\n\nstruct CodeRange {\n    char32_t first;\n"
        "    char32_t last;\n};\n"
    ]
    for name, meaning, codes in tables():
        ranges = [f"{{0x{first:X}, 0x{last:X}}}" for first, last in ranges_of(codes)]
        lines, line = [], "   "
        for item in ranges:
            if len(line) + len(item) > 117:
                lines.append(line)
                line = "   "
            line += f" {item},"
        body = "\n".join([*lines, line])
        parts.append(f"\n/// {meaning}\ninline constexpr CodeRange {name}[] = {{\n{body}\n}};\n")
    return "".join([*parts, "\n}  // namespace rm_runtime::unicode\n"])


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(HEADER.read_text() != header())
    HEADER.write_text(header())
