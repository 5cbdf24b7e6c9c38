"""The C++ reader of tokenizer.json: the ids of the package tokenizers, or a refusal in one line."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import cpp_builds
from conversations import EDGES, SPECIAL_TEXT
from corpus import CODE, ENGLISH, OTHER_LANGUAGES, SYMBOLS
from prompt_cases import FOLDER, load_tokenizer

FAMILIES = ("llama3", "qwen", "mistral", "gemma", "deberta")
POOL = (*ENGLISH, *OTHER_LANGUAGES, *CODE, *SYMBOLS, *SPECIAL_TEXT)
WHITESPACE = (" ", "  ", "\n", "\n\n", "    ", "\t\t", " \n ", "\r\n", "\u00a0", "\u3000", "\u2028", "\u0085")
ODD = "½ﬁ①Ａ…é\u0301İıſßΣςK한가각ᄒ ก้👩‍👩‍👧🇩🇪♥️²³٣৪Ⅷ'’▁\x00\x01\x7f\u200b\u200d\ufeffǅ𝕏"
ODD += "\u0600\u0897\U0010fffd\U000e0041\u00ad"
CODE_POINTS = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def token_ids(tokenizer: Path, texts: Sequence[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [cpp_builds.sanitized() / "token_ids", tokenizer],
        input="".join(f"{json.dumps(text)}\n" for text in texts),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **cpp_builds.SANITIZERS},
    )
    assert done.returncode in (0, 1), done.stderr
    assert "Sanitizer" not in done.stderr, done.stderr
    return done


def ids_in_cpp(tokenizer: Path, texts: Sequence[str]) -> list[list[int]]:
    done = token_ids(tokenizer, texts)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_equal_ids(family: str, texts: Sequence[str]) -> None:
    expected = [encoding.ids for encoding in load_tokenizer(family).encode_batch(texts, add_special_tokens=False)]
    got = ids_in_cpp(FOLDER / family / "tokenizer.json", texts)
    differing = [(text, e, g) for text, e, g in zip(texts, expected, got, strict=True) if e != g]
    assert not differing, f"{len(differing)} of {len(texts)}: {differing[:3]}"


def mixed_texts(count: int) -> list[str]:
    """Parts of sentences, code, special-token text, white space and letters of any script, put together."""
    chance = np.random.default_rng(0)

    def part() -> str:
        text = POOL[chance.integers(len(POOL))]
        start = int(chance.integers(len(text)))
        letters = chance.integers(32, 0x3100, chance.integers(1, 9))
        parts = (
            text[start : start + int(chance.integers(1, 60))],
            "".join(ODD[place] for place in chance.integers(0, len(ODD), chance.integers(1, 10))),
            WHITESPACE[chance.integers(len(WHITESPACE))],
            "".join(map(chr, letters)),
        )
        return str(chance.choice(parts, p=(0.5, 0.2, 0.2, 0.1)))

    return ["".join(part() for _ in range(chance.integers(1, 6))) for _ in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_equal_those_of_tokenizers_on_thousands_of_texts(family: str) -> None:
    assert_equal_ids(family, [*EDGES, *POOL, *mixed_texts(2500)])


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_equal_for_letters_of_all_of_unicode(family: str) -> None:
    some = [*CODE_POINTS[:0x900], *CODE_POINTS[0x900:0xFFFF:23], *CODE_POINTS[0xFFFF:0x20000:61], 0xE0001, 0x10FFFF]
    around = "a{0}b '{0}a 1{0}\u0301 \u00bd{0} {0}{0}1{0}\n{0}e{0}\u0301 \u0600{0}\u0301"
    assert_equal_ids(family, [around.format(chr(code)) for code in some])


def test_ids_are_equal_for_long_texts_without_words() -> None:
    for family in FAMILIES:
        assert_equal_ids(family, ["ab" * 20_000, " " * 20_000, "é" * 5_000, "<|" * 5_000])


def test_the_committed_tables_of_unicode_are_those_of_the_installed_tokenizers() -> None:
    script = cpp_builds.SOURCE / "tools" / "make_unicode_tables.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0


def document(family: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((FOLDER / family / "tokenizer.json").read_text())
    return parsed


def refusal(tokenizer: dict[str, Any] | str, folder: Path) -> str:
    path = folder / "tokenizer.json"
    path.write_text(tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer))
    done = token_ids(path, ["a"])
    assert done.returncode == 1, done.stdout
    assert done.stderr.count("\n") == 1
    return done.stderr


def component(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda tokenizer: tokenizer.update({name: value})


def model_field(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda tokenizer: tokenizer["model"].update({name: value})


def split_by(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


UNKNOWN = {
    "normalizer 'NFKC'": component("normalizer", {"type": "NFKC"}),
    "pre-tokenizer 'Whitespace'": component("pre_tokenizer", {"type": "Whitespace"}),
    "pre-tokenizer 'inverted Split'": component("pre_tokenizer", {**split_by("a"), "invert": True}),
    "splitting behaviour 'Contiguous'": component("pre_tokenizer", {**split_by("a"), "behavior": "Contiguous"}),
    "has an escape that is not known": component("pre_tokenizer", split_by(r"\w+")),
    "holds letters outside ASCII": component("pre_tokenizer", split_by("é")),
    "has a class within a class": component("pre_tokenizer", split_by("[a[b]]")),
    "has a group that is not known": component("pre_tokenizer", split_by("(?<n>a)")),
    "has a sign that is not known": component("pre_tokenizer", split_by("^a")),
    "cannot be compiled": component("pre_tokenizer", split_by("(a")),
    "model 'WordPiece'": model_field("type", "WordPiece"),
    "BPE option 'dropout'": model_field("dropout", 0.1),
    "BPE option 'end_of_word_suffix'": model_field("end_of_word_suffix", "</w>"),
    "its vocabulary lacks 'zzz'": model_field("merges", [["zzz", "a"]]),
    "an id is -1": model_field("vocab", {"a": -1}),
    "merges is a number": model_field("merges", 3),
    "it has no vocab": lambda tokenizer: tokenizer["model"].pop("vocab"),
    "by its place it is": lambda tokenizer: tokenizer["added_tokens"][0].update(id=99999),
    "added token of whole words": lambda tokenizer: tokenizer["added_tokens"][0].update(single_word=True),
}


@pytest.mark.parametrize(("reason", "change"), UNKNOWN.items(), ids=UNKNOWN)
def test_what_the_reader_does_not_know_is_refused_by_name(
    reason: str, change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    tokenizer = document("llama3")
    change(tokenizer)
    assert reason in refusal(tokenizer, tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"model": {}}', '{"model": null}', "{" * 1000, '{"model": {"type": 1}}', "\x00"]
)
def test_a_garbled_tokenizer_is_refused(text: str, tmp_path: Path) -> None:
    refusal(text, tmp_path)


@pytest.mark.parametrize("charsmap", ["", "AAAA", "BAAAAP////8=", "////", "!", "CAAAAAAAAAD/////"])
def test_a_damaged_normalisation_map_is_refused_or_harmless(charsmap: str, tmp_path: Path) -> None:
    tokenizer = document("deberta")
    tokenizer["normalizer"]["normalizers"][1]["precompiled_charsmap"] = charsmap
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer))
    assert token_ids(path, ["aé½ b"]).stderr.count("\n") <= 1


VARIANTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "GPT-2's words": component(
        "pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    ),
    "merges as text": lambda t: t["model"].update(merges=[" ".join(pair) for pair in t["model"]["merges"]]),
    "spaces around a token": lambda t: t["added_tokens"][9].update(lstrip=True, rstrip=True),
    "removed delimiters": component(
        "pre_tokenizer",
        {
            "type": "Sequence",
            "pretokenizers": [
                {**split_by(r"\s"), "behavior": "Removed"},
                {**split_by(r"[aeiou]"), "behavior": "MergedWithNext"},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_other_tokenizers_of_these_kinds_do_is_done_too(name: str, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(document("llama3"))
    VARIANTS[name](tokenizer)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer))
    texts = [*EDGES, *POOL, *mixed_texts(300), "a <|eot_id|> \n b<|eot_id|>  <|eot_id|>"]
    expected = [
        encoding.ids for encoding in Tokenizer.from_file(str(path)).encode_batch(texts, add_special_tokens=False)
    ]
    assert ids_in_cpp(path, texts) == expected


@pytest.mark.parametrize("scheme", ["first", "never", "always"])
def test_metaspace_marks_the_start_as_its_scheme_says(scheme: str, tmp_path: Path) -> None:
    tokenizer = document("mistral")
    tokenizer["normalizer"] = None
    tokenizer["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": scheme,
        "split": scheme != "first",
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer))
    texts = [*EDGES, *POOL, "a</s>b </s> c", "</s>b", " ▁ x"]
    expected = [
        encoding.ids for encoding in Tokenizer.from_file(str(path)).encode_batch(texts, add_special_tokens=False)
    ]
    assert ids_in_cpp(path, texts) == expected
