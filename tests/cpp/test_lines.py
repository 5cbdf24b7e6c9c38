"""What rm_score does with lines and arguments that are not what they should be."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import checkpoints
import cpp_builds
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_runtime import load
from rm_runtime.jsonl import MAX_LINE_BYTES, answer_lines

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
GOOD = json.dumps({"messages": CHAT}).encode()

SAME_WORDS = (
    b"[" * 100_000,
    b'{"messages": ' + b"[" * 2000 + b"]" * 2000 + b"}",
    b"\xff\xfe",
    b'{"messages": "\xc3"}',
    b'"\xed\xa0\x80"',
    b'"\xf4\x90\x80\x80"',
    b'"\xc0\xaf"',
    b'{"id": {}, "messages": []}',
    b'{"messages": [], "messages": 3}',
)
"""Lines that both runtimes refuse with the same words."""
OWN_WORDS = (
    b"{",
    b"{'a': 1}",
    b'{"messages": [}',
    b'{"messages": NaN}',
    b'{"messages": 1e999}',
    b"{} {}",
    b'{"a": "\x01"}',
    b'{"a": "\\x"}',
    b"nul",
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"a": 01}',
    b"\x00",
)
"""Lines that both refuse, each in the words of its JSON reader."""
ACCEPTED = (
    b" \t" + GOOD + b"\r",
    b'{"id": 7, "messages": ' + json.dumps(CHAT).encode() + b"}",
    b'{"id": "\\u00e9\\ud83d\\ude00\\n\\"", "messages": ' + json.dumps(CHAT).encode() + b"}",
    b'{"id": null, "x": [1.5, -0, 1e3, true], "messages": ' + json.dumps(CHAT).encode() + b"}",
    b'{"id": 0.1, "responses": null, "messages": ' + json.dumps(CHAT).encode() + b"}",
    b'{"id": 1e16, "messages": ' + json.dumps(CHAT).encode() + b"}",
    b'{"id": -1.25e-7, "messages": ' + json.dumps(CHAT).encode() + b"}",
    b'{"messages": 1, "messages": ' + json.dumps(CHAT).encode() + b"}",
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    return export_checkpoint(open_checkpoint(checkpoints.scalar(folder / "checkpoint")), folder / "bundle")


def answers_of(bundle: Path, lines: bytes, *options: str) -> tuple[int, list[Any]]:
    done = cpp_builds.score(bundle, lines, *options)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def in_python(bundle: Path, lines: bytes) -> list[str]:
    model = load(bundle, engine="onnxruntime", threads=1)
    return [answer.text for chunk in answer_lines(model, io.BytesIO(lines)) for answer in chunk]


def test_bad_lines_get_the_python_runtimes_errors(bundle: Path) -> None:
    lines = b"\n".join(SAME_WORDS) + b"\n"
    assert [json.dumps(answer) for answer in answers_of(bundle, lines)[1]] == in_python(bundle, lines)


@pytest.mark.parametrize("line", OWN_WORDS)
def test_a_line_that_is_not_json_is_an_error_in_its_place(line: bytes, bundle: Path) -> None:
    status, (first, error, last) = answers_of(bundle, b"\n".join([GOOD, line, GOOD]))
    assert status == 1
    assert first == last
    assert set(error) == {"error", "line"}
    assert error["line"] == 2
    assert "\n" not in error["error"]
    assert "error" in json.loads(in_python(bundle, line)[0])


def test_good_lines_are_answered_byte_for_byte_as_in_python(bundle: Path) -> None:
    lines = b"\xef\xbb\xbf" + b"\n \n\r\n".join(ACCEPTED)
    done = cpp_builds.score(bundle, lines)
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == in_python(bundle, lines)


def test_a_line_that_is_too_long_is_an_error_and_the_next_is_answered(bundle: Path) -> None:
    status, (error, answer) = answers_of(bundle, b"x" * (MAX_LINE_BYTES + 5) + b"\n" + GOOD)
    assert (status, error) == (1, {"error": f"longer than {MAX_LINE_BYTES} bytes", "line": 1})
    assert "score" in answer


def test_no_lines_are_no_answers(bundle: Path) -> None:
    assert answers_of(bundle, b"") == (0, [])
    assert answers_of(bundle, b"\n \n") == (0, [])


def test_many_lines_keep_their_order(bundle: Path) -> None:
    lines = [json.dumps({"id": number, "messages": CHAT}) if number % 7 else "{" for number in range(600)]
    status, answers = answers_of(bundle, "\n".join(lines).encode())
    assert status == 1
    assert [answer.get("id", answer.get("line", 0) - 1) for answer in answers] == list(range(600))


def test_ranking_asks_for_responses(bundle: Path) -> None:
    status, (answer,) = answers_of(bundle, GOOD, "--rank")
    assert (status, answer["error"]) == (1, 'ranking needs "responses", the answers to rank')


def test_failures_are_counted_on_stderr(bundle: Path) -> None:
    done = cpp_builds.score(bundle, GOOD + b"\n{\n")
    assert done.stderr.decode() == 'rm_score: error: 1 of 2 lines failed; the output has an "error" for each\n'


def test_a_file_is_read_instead_of_stdin(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(GOOD)
    assert answers_of(bundle, b"", "-i", str(tmp_path / "in.jsonl")) == answers_of(bundle, GOOD)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "missing argument BUNDLE"),
        (["a", "b"], "unexpected argument: b"),
        (["a", "--engine"], "no such option: --engine"),
        (["a", "--threads"], "--threads needs a value"),
        (["a", "--threads", "0"], "--threads 0: a whole number of at least 1"),
        (["a", "--batch-tokens", "9x"], "--batch-tokens 9x: a whole number of at least 1"),
        (["a", "--truncation", "yes"], "--truncation yes: one of cut, error"),
        (["a", "-i", "/nowhere"], "/nowhere cannot be read"),
    ],
)
def test_misuse_is_one_line_and_status_2(arguments: list[str], told: str) -> None:
    command = [cpp_builds.sanitized() / "rm_score", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (2, f"rm_score: error: {told} (try rm_score --help)\n")


def test_help_tells_what_a_line_is() -> None:
    done = subprocess.run([cpp_builds.sanitized() / "rm_score", "--help"], capture_output=True, text=True, check=True)
    assert '{"messages": [...]}' in done.stdout
    assert all(len(line) <= 120 for line in done.stdout.splitlines())
