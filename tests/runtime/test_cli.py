"""rm-runtime on the command line, with a small real bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import os
import pty
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fake_models import write_scalar_bundle
from rm_runtime import load, loading
from rm_runtime.cli import cli, main
from rm_runtime.options import RequestOptions
from served import RM_RUNTIME, environment

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
SCORE_LINE = json.dumps({"messages": CHAT})
RANK_LINE = json.dumps({"messages": CHAT[:1], "responses": ["Hello there", "Go away"]})
HEAVY = (
    "torch",
    "transformers",
    "onnx",
    "onnxscript",
    "jsonschema",
    "rich",
    "click",
    "onnxruntime",
    "jinja2",
    "ray",
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_scalar_bundle(tmp_path_factory.mktemp("bundles") / "scalar"))


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text(f"{SCORE_LINE}\n{RANK_LINE}\n")
    return path


def process(*arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", RM_RUNTIME, *arguments], env=environment(), stderr=subprocess.PIPE, **streams
    )


def test_stdin_is_scored_to_stdout(
    bundle: str, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = io.TextIOWrapper(io.BytesIO(f"{SCORE_LINE}\r\n\r\n{RANK_LINE}".encode()))
    monkeypatch.setattr(sys, "stdin", source)
    assert main(["score", bundle]) == 0
    out, err = capfdbinary.readouterr()
    score, ranking = map(json.loads, out.splitlines())
    model = load(bundle)
    assert score == {"score": model.score([CHAT])[0].score}
    assert ranking == model.rank(CHAT[:1], ["Hello there", "Go away"]).as_json()
    assert err == b""


def test_a_file_is_scored_to_a_file(bundle: str, lines: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert main(["score", bundle, "-i", str(lines), "-o", str(output)]) == 0
    assert [sorted(json.loads(line)) for line in output.read_text().splitlines()] == [
        ["score"],
        ["ranks", "scores"],
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(output.stat().st_mode) == 0o666 & ~umask


def test_a_bad_line_leaves_an_error_in_its_place_and_exit_status_1(
    bundle: str, lines: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines.write_text(f"{SCORE_LINE}\noops\n{SCORE_LINE}\n")
    output = tmp_path / "out.jsonl"
    assert main(["score", bundle, "-i", str(lines), "-o", str(output)]) == 1
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [list(answer) for answer in answers] == [["score"], ["error", "line"], ["score"]]
    assert capfd.readouterr().err == f'rm-runtime: error: 1 of 3 lines failed; {output} has an "error" for each\n'


def test_rank_wants_responses_in_every_line(bundle: str, lines: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", bundle, "-i", str(lines)]) == 1
    bad, good = map(json.loads, capfd.readouterr().out.splitlines())
    assert bad == {"error": 'ranking needs "responses", the answers to rank', "line": 1}
    assert sorted(good) == ["ranks", "scores"]


def test_the_options_reach_the_model(bundle: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    typed = [*CHAT[:1], {"role": "assistant", "content": "<|eot_id|>" * 2}]
    long = [*CHAT[:1], {"role": "assistant", "content": "word " * 5000}]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in (CHAT, typed, long)))
    common = [
        "score",
        bundle,
        "-i",
        str(source),
        "--engine",
        "onnxruntime",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    assert main([*common, "--batch-tokens", "64"]) == 0
    default = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert "truncated" in default[2]
    assert main([*common, "--special-text", "text"]) == 0
    as_text = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert as_text[0] == default[0]
    assert as_text[1] != default[1]
    assert main([*common, "--special-text", "error", "--truncation", "error"]) == 1
    refused = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert ["error" in answer for answer in refused] == [False, True, True]


def one_error_line(capfd: pytest.CaptureFixture[str]) -> str:
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("rm-runtime: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["score"],
        ["scores"],
        ["score", "b", "--nonsense"],
        ["score", "b", "-i", "/nonexistent.jsonl"],
        ["score", "b", "-i", "/"],
        ["score", "b", "-o", "/"],
        ["score", "b", "--threads", "0"],
        ["score", "b", "--batch-tokens", "many"],
        ["score", "b", "--engine", "pytorch"],
        ["score", "b", "--truncation", "maybe"],
        ["rank", "b", "--special-text", "maybe"],
    ],
)
def test_misuse_is_one_line_and_exit_status_2(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    one_error_line(capfd)


def test_a_folder_that_is_no_bundle_is_one_line_and_exit_status_1(
    tmp_path: Path, lines: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(tmp_path), "-i", str(lines)]) == 1
    assert "bundle.json" in one_error_line(capfd)


def test_a_device_that_is_not_there_is_one_line_and_exit_status_1(
    bundle: str, lines: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", bundle, "-i", str(lines), "--device", "abacus"]) == 1
    assert "abacus" in one_error_line(capfd)


def test_the_traceback_comes_only_with_debug(bundle: str, lines: Path) -> None:
    arguments = ["score", "/nowhere", "-i", str(lines)]
    for extra in ([*arguments, "--debug"], ["--debug", *arguments]):
        run = process(*extra, stdout=subprocess.PIPE)
        _, err = run.communicate()
        assert b"Traceback" in err
        assert run.returncode == 1


def test_a_failed_run_leaves_the_old_output_and_no_other_file(
    tmp_path: Path, lines: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damaged = write_scalar_bundle(tmp_path / "nan", score="nan")
    output = tmp_path / "out.jsonl"
    output.write_text("old")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["score", str(damaged), "-i", str(lines), "-o", str(output)]) == 1
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    one_error_line(capfd)


def test_a_replaced_output_keeps_its_mode_and_a_link_stays_a_link(bundle: str, lines: Path, tmp_path: Path) -> None:
    output, link = tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    output.write_text("old")
    output.chmod(0o640)
    link.symlink_to(output)
    assert main(["score", bundle, "-i", str(lines), "-o", str(link)]) == 0
    assert link.is_symlink()
    assert stat.S_IMODE(output.stat().st_mode) == 0o640
    assert len(output.read_text().splitlines()) == 2


def test_a_device_file_is_written_and_not_replaced(bundle: str, lines: Path) -> None:
    assert main(["score", bundle, "-i", str(lines), "-o", os.devnull]) == 0
    assert not Path(os.devnull).is_file()


def test_the_input_may_be_the_output(bundle: str, lines: Path) -> None:
    assert main(["score", bundle, "-i", str(lines), "-o", str(lines)]) == 0
    assert [sorted(json.loads(line)) for line in lines.read_text().splitlines()] == [
        ["score"],
        ["ranks", "scores"],
    ]


def test_a_reader_that_leaves_is_no_news(bundle: str) -> None:
    run = process("score", bundle, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdin
    assert run.stdout
    run.stdout.close()
    _, err = run.communicate(f"{SCORE_LINE}\n".encode() * 1000)
    assert err == b""
    assert run.returncode == 1


def test_an_interrupt_ends_quietly_with_status_130(bundle: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run = process("score", bundle, "-o", str(output), stdin=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 15
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate()
    assert run.returncode == 130
    assert b"Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def terminal_of(bundle: str, source: Path, output: Path) -> bytes:
    """What `score` shows where stderr is a terminal."""
    ours, theirs = pty.openpty()
    run = subprocess.Popen(
        [sys.executable, "-c", RM_RUNTIME, "score", bundle, "-i", str(source), "-o", str(output)],
        env={**environment(), "TERM": "xterm"},
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux tells that the other end is closed
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    assert run.wait() == 0
    return shown


def test_a_terminal_shows_how_much_of_the_file_is_done(bundle: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(f"{SCORE_LINE}\n" * 300)
    size = f"{source.stat().st_size / 1024:.1f}"
    shown = terminal_of(bundle, source, tmp_path / "out.jsonl").decode()
    assert f"{size}/{size} KiB" in shown


@pytest.mark.parametrize("command", ["score", "rank"])
def test_every_option_of_load_and_of_requests_is_one_of_the_command(command: str) -> None:
    choices = {*inspect.signature(load).parameters, *(field.name for field in dataclasses.fields(RequestOptions))}
    assert choices - {"path", "options"} <= {parameter.name for parameter in cli.commands[command].params}


def test_what_the_command_was_told_reaches_load(
    bundle: str, lines: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(loading, "load", lambda path, **options: told.append(options) or load(path, **options))
    assert main(["score", bundle, "-i", str(lines), "--no-share-prefixes", "--verify", "--batch-tokens", "9"]) == 0
    assert main(["score", bundle, "-i", str(lines)]) == 0
    chosen = [tuple(options[name] for name in ("share_prefixes", "verify", "batch_tokens")) for options in told]
    assert chosen == [(False, True, 9), (True, False, None)]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("command", [[], ["score"], ["rank"], ["bench"]])
def test_help_is_shown_with_status_0(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    assert "Usage: rm-runtime" in capfd.readouterr().out


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = f"import sys, rm_runtime; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"
