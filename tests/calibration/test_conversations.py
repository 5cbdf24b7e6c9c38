"""The default conversations are fit to measure on, and a user's file is read or refused with its line."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rm_calibration.conversations import default_conversations, read_conversations
from rm_runtime.errors import RequestError


def test_the_default_set_is_varied() -> None:
    examples = default_conversations()
    assert len(examples) >= 60
    assert all(2 <= len(example.responses) <= 4 for example in examples)
    assert all(example.messages[-1]["role"] == "user" for example in examples)
    assert all(len(set(example.responses)) == len(example.responses) for example in examples)
    assert len({str(example.messages) for example in examples}) == len(examples)
    assert sum(len(example.messages) > 2 for example in examples) >= 5
    assert any(example.messages[0]["role"] == "system" for example in examples)
    texts = [text for example in examples for text in (example.messages[-1]["content"], *example.responses)]
    assert max(map(len, texts)) > 1000
    assert min(map(len, texts)) < 10
    assert sum("```" in text for text in texts) >= 10
    assert sum(any(ord(letter) > 0x400 for letter in text) for text in texts) >= 10


def test_both_kinds_of_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"messages": [{"role": "user", "content": "hi"}], "responses": ["a", "b"]}\r\n\n'
        b'{"messages": [{"role": "user", "content": "x\xe2\x80\xa8y"}, {"role": "assistant", "content": "z"}]}'
    )
    pair, whole = read_conversations(path)
    assert pair.conversation(1) == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "b"}]
    assert whole.responses == ()
    assert whole.conversation()[0]["content"] == "x\u2028y"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not a JSON object"),
        (b'"\xff"', "not a JSON object"),
        (b"[]", "expected an object"),
        (b'{"prompt": "hi"}', "expected an object"),
        (b'{"messages": []}', "empty"),
        (b'{"messages": [{"role": "user", "content": 7}]}', "message 0"),
        (b'{"messages": [{"role": "user", "content": "a"}], "responses": "b"}', "responses must be a list"),
        (b'{"messages": [{"role": "user", "content": "a"}], "responses": []}', "responses must be a list"),
        (b'{"messages": [{"role": "user", "content": "a"}], "responses": ["b", null]}', "response 1"),
    ],
)
def test_a_bad_line_is_named_in_one_line(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(b'{"messages": [{"role": "user", "content": "a"}]}\n\n' + line + b"\n")
    with pytest.raises(RequestError) as caught:
        read_conversations(path)
    assert f"{path}, line 3: " in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_or_missing_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(RequestError, match="holds no line"):
        read_conversations(tmp_path / "empty.jsonl")
    with pytest.raises(RequestError, match="cannot be read"):
        read_conversations(tmp_path / "none.jsonl")


def test_a_parquet_file_gives_the_same_examples_as_its_json_lines(tmp_path: Path) -> None:
    lines = [
        {"messages": [{"role": "user", "content": "Hi"}], "responses": ["Hello", "Go away ü"]},
        {"messages": [{"role": "user", "content": "2+2?"}], "responses": ["4"]},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), tmp_path / "chats.parquet")
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_conversations(tmp_path / "chats.parquet") == read_conversations(tmp_path / "chats.jsonl")


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"prompt": ["Hi"]}, "row 1: expected an object"),
        ({"messages": pyarrow.array([], pyarrow.list_(pyarrow.string()))}, "holds no row"),
        ({"messages": [["Hi"]]}, "row 1: "),
    ],
)
def test_a_parquet_file_without_conversations_is_refused(tmp_path: Path, table: dict[str, Any], reason: str) -> None:
    path = tmp_path / "chats.parquet"
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    with pytest.raises(RequestError, match=reason) as caught:
        read_conversations(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_only_calls_itself_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chats.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(RequestError, match="cannot be read as Parquet") as caught:
        read_conversations(tmp_path / "chats.parquet")
    assert "\n" not in str(caught.value)
