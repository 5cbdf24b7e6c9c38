"""Files and folders answered file by file, whatever stops a run."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

import rm_runtime.jsonl
from fake_models import write_scalar_bundle
from killed_runs import CHUNK_LINES, Scorer, answer_folder
from rm_runtime.bulk.columns import ANSWER_COLUMNS
from rm_runtime.bulk.files import one_file
from rm_runtime.bulk.pool import LocalPool
from rm_runtime.bulk.progress import held
from rm_runtime.bulk.run import FileRun
from rm_runtime.bulk.settings import answer_settings
from rm_runtime.bundle import open_bundle
from rm_runtime.cli import main
from rm_runtime.parquet import read_rows
from rm_runtime.results import ArmoScore, Comparison, DPAScore, LogitsScore, Ranking, Score, Truncation

TESTS = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rm_runtime.jsonl, "CHUNK_LINES", CHUNK_LINES)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_scalar_bundle(tmp_path_factory.mktemp("bundles") / "scalar"))


def chat(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]


def answers_of(name: str, count: int) -> list[str]:
    return [f"{name} {row}{' bad' * (row % 5 == 3)}" for row in range(count)]


def write_lines(path: Path, count: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"messages": chat(answer)}) + "\n" for answer in answers_of(path.stem, count)]
    path.write_text("\n".join(lines))  # a blank line between any two
    return path


def write_rows(path: Path, count: int, group: int = 3, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    answers = answers_of(path.stem, count)
    table = pyarrow.table({"source": answers, "messages": [chat(answer) for answer in answers], **columns})
    parquet.write_table(table, path, row_group_size=group)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """What a reader of the folder sees."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def never_loaded() -> Any:
    raise AssertionError("there is nothing to answer")


def test_each_file_of_a_folder_has_its_answers_under_its_name(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_lines(source / "a.jsonl", 6)
    write_rows(source / "deep" / "b.parquet", 7)
    (source / "README.md").write_text("about")
    write_lines(source / ".hidden" / "c.jsonl", 1)
    totals, said = answer_folder(source, output, Scorer)
    assert (totals.answers, totals.failed, totals.unread) == (13, 2, 0)
    assert list(files_of(output)) == ["a.jsonl", "deep/b.parquet"]
    lines = [json.loads(line) for line in (output / "a.jsonl").read_text().splitlines()]
    assert lines[:2] == [{"score": 3.004}] * 2
    assert lines[3] == {"error": "it is bad", "line": 7}
    assert said == []


def test_a_parquet_file_keeps_its_columns_and_gains_those_of_the_answers(tmp_path: Path) -> None:
    before = parquet.read_table(write_rows(tmp_path / "in" / "a.parquet", 9))
    answer_folder(tmp_path / "in", tmp_path / "out", Scorer)
    after = parquet.read_table(tmp_path / "out" / "a.parquet")
    assert after.select(before.column_names) == before
    assert after.column_names == [*before.column_names, "score", "truncated", "error"]
    assert after["score"].to_pylist() == [3.004, 3.004, 3.004, None, 3.004, 3.004, 3.004, 3.004, None]
    assert after["error"].to_pylist() == [None, None, None, "it is bad", None, None, None, None, "it is bad"]
    assert after.schema.field("score").type == pyarrow.float64()


def test_rows_with_responses_gain_ranks_and_scores(tmp_path: Path) -> None:
    rows = [
        {"messages": chat("x")[:1], "responses": ["a", "ccc", "bb"]},
        {"messages": chat("alone"), "responses": None},
    ]
    (tmp_path / "in").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in" / "a.parquet")
    answer_folder(tmp_path / "in", tmp_path / "out", Scorer)
    after = parquet.read_table(tmp_path / "out" / "a.parquet").to_pylist()
    assert [row["ranks"] for row in after] == [[3, 1, 2], None]
    assert [row["scores"] for row in after] == [[1.004, 3.004, 2.004], None]
    assert [row["score"] for row in after] == [None, 5.004]


def test_every_key_of_every_result_has_a_column() -> None:
    cut = (Truncation(3, "left"),)
    results = [
        Score(1, truncation=cut),
        LogitsScore(1),
        ArmoScore(1),
        DPAScore(1),
        Ranking((1,), (1,), (cut,)),
        Comparison(0.5, (0.5, 0.5), ((0, 0), (0, 0)), cut),
    ]
    assert {key for result in results for key in result.as_json()} | {"error"} == set(ANSWER_COLUMNS)


class Explained(Scorer):
    """Answers with the results it was given, in their order."""

    def __init__(self, results: list[Any]) -> None:
        super().__init__()
        self._results = iter(results)

    def score(self, conversations: Any, errors: str = "raise") -> list[Any]:
        return [next(self._results) for _ in conversations]


def test_what_was_cut_is_one_list_for_each_text_of_a_row(tmp_path: Path) -> None:
    rows = [{"messages": chat("x"), "responses": None}, {"messages": chat("x"), "responses": ["a", "b"]}]
    (tmp_path / "in").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist([*rows, *rows[:1]]), tmp_path / "in" / "a.parquet")
    cut = Truncation(3, "left")
    results = [
        Score(1.0, truncation=(cut,)),
        Score(2.0, truncation=(cut,)),
        Score(3.0),
        LogitsScore(1.0, 0, (), (5.0,)),
    ]
    answer_folder(tmp_path / "in", tmp_path / "out", lambda: Explained(results))
    after = parquet.read_table(tmp_path / "out" / "a.parquet").to_pylist()
    cuts = {"tokens": 3, "side": "left", "part": "conversation"}
    assert [row["truncated"] for row in after] == [[[cuts]], [[cuts], []], None]
    assert [row["logits"] for row in after] == [None, None, [5.0]]


def test_a_run_killed_at_any_step_goes_on_and_leaves_the_files_of_one_that_was_not(tmp_path: Path) -> None:
    names = {"a.jsonl": 3 * CHUNK_LINES - 1, "b.parquet": 2 * CHUNK_LINES + 1, "c.jsonl": 0}
    for name, count in names.items():
        (write_lines if name.endswith("jsonl") else write_rows)(tmp_path / "input" / name, count)
    path = os.pathsep.join(str(TESTS.parent / name) for name in ("runtime", "tests"))
    program = [sys.executable, str(TESTS / "killed_runs.py"), str(tmp_path)]
    done = subprocess.run(program, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")

    answer_folder(tmp_path / "input", tmp_path / "whole", Scorer)
    whole = files_of(tmp_path / "whole")
    expected = sorted(answer for name, count in names.items() for answer in answers_of(Path(name).stem, count))
    killed = [folder for folder in tmp_path.iterdir() if folder.name.isdigit()]
    assert len(killed) > 40
    for folder in killed:
        assert files_of(folder / "output") == whole
        asked = Counter((folder / "asked").read_text().splitlines())
        assert sorted(asked) == expected
        assert max(asked.values()) <= 2
        assert sum(count == 2 for count in asked.values()) <= CHUNK_LINES, "more than the chunk in work, asked again"
        hidden = {path.name for path in (folder / "output").iterdir() if path.name.startswith(".")}
        assert hidden == {f".{name}.progress" for name in names}


def process(*arguments: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(TESTS.parent / "runtime"), str(TESTS)])
    program = "import sys; from rm_runtime.cli import main; sys.exit(main())"
    return subprocess.Popen([sys.executable, "-c", program, *arguments], env={**os.environ, "PYTHONPATH": path})


def test_the_command_goes_on_after_kill_9(bundle: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, output, whole = write_lines(tmp_path / "in.jsonl", 1500), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    arguments = ["score", bundle, "-i", str(source), "--threads", "1", "--engine", "onnxruntime"]
    run = process(*arguments, "-o", str(output))
    record = tmp_path / ".out.jsonl.progress"
    while run.poll() is None and not (record.exists() and json.loads(record.read_bytes())["answers"]):
        time.sleep(0.001)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not output.exists()
    answered = json.loads(record.read_bytes())["answers"]

    again = process(*arguments, "-o", str(output))
    assert again.wait() == 0
    assert f"goes on after {answered} answers" in capfd.readouterr().err
    assert process(*arguments, "-o", str(whole)).wait() == 0
    assert output.read_bytes() == whole.read_bytes()
    assert len(output.read_bytes().splitlines()) == 1500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "whole.jsonl"]


class StoppedError(Exception):
    """Ends a run between two of its requests."""


def stopped_after(chunks: int) -> Scorer:
    asked: list[str] = []

    def asks(answer: str) -> None:
        asked.append(answer)
        if len(asked) > chunks * CHUNK_LINES:
            raise StoppedError

    return Scorer(asks)


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """A folder whose only file was answered by a run that was stopped after its first chunk."""
    write_lines(tmp_path / "in" / "a.jsonl", 11)
    with pytest.raises(StoppedError):
        answer_folder(tmp_path / "in", tmp_path / "out", lambda: stopped_after(1))
    return tmp_path


def asked_by(folder: Path, **changed: Any) -> tuple[list[str], list[str]]:
    """What a run over the folder asks its model, and what it says."""
    asked: list[str] = []
    _, said = answer_folder(folder / "in", folder / "out", lambda: Scorer(asked.append), **changed)
    return asked, said


def test_a_stopped_run_goes_on_after_its_last_chunk(unfinished: Path) -> None:
    asked, said = asked_by(unfinished)
    assert asked == answers_of("a", 11)[CHUNK_LINES:]
    assert said == [f"{unfinished / 'out' / 'a.jsonl'} goes on after {CHUNK_LINES} answers of an earlier run"]
    errors = [json.loads(line).get("line") for line in (unfinished / "out" / "a.jsonl").read_text().splitlines()]
    assert errors == [None, None, None, 7, None, None, None, None, 17, None, None]


def test_what_is_answered_is_not_asked_again_and_loads_no_model(tmp_path: Path) -> None:
    write_lines(tmp_path / "in" / "a.jsonl", 5)
    write_rows(tmp_path / "in" / "b.parquet", 5)
    first, _ = answer_folder(tmp_path / "in", tmp_path / "out", Scorer)
    before = files_of(tmp_path / "out")
    asked, said = asked_by(tmp_path)
    assert (asked, said, files_of(tmp_path / "out")) == ([], [], before)
    again, _ = answer_folder(tmp_path / "in", tmp_path / "out", never_loaded)
    assert again == first


def test_an_input_that_has_changed_is_answered_anew(unfinished: Path) -> None:
    write_lines(unfinished / "in" / "a.jsonl", 12)
    asked, said = asked_by(unfinished)
    assert asked == answers_of("a", 12)
    assert said == [f"{unfinished / 'out' / 'a.jsonl'} is made anew: {unfinished / 'in' / 'a.jsonl'} has changed since"]


@pytest.mark.parametrize("whole", [True, False])
def test_other_settings_answer_anew_and_are_named(unfinished: Path, whole: bool) -> None:
    if whole:
        asked_by(unfinished)
    asked, said = asked_by(unfinished, settings={"bundle": "b", "truncation": "cut"})
    assert len(asked) == 11
    reason = "an earlier run had another bundle and another truncation"
    assert said == [f"{unfinished / 'out' / 'a.jsonl'} is made anew: {reason}"]


def test_answers_that_replaced_their_own_input_are_not_taken_for_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "a.jsonl", 5)
    asked: list[str] = []
    options: dict[str, Any] = {"ranking": False, "column_prefix": "", "keeps_records": False, "say": pytest.fail}
    run = FileRun(LocalPool(lambda: Scorer(asked.append)), {}, **options)
    unlink = Path.unlink

    def stops(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".progress":
            raise StoppedError
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", stops)
    with pytest.raises(StoppedError):
        run.answer_all([one_file(path, path)], lambda: None)
    monkeypatch.setattr(Path, "unlink", unlink)
    before = path.read_bytes()
    run.answer_all([one_file(path, path)], lambda: None)
    assert path.read_bytes() == before
    assert asked == answers_of("a", 5)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("damage", ["", "{}", "[1]", '{"format": 1, "source": 2}'])
def test_a_damaged_record_is_no_record(unfinished: Path, damage: str) -> None:
    (unfinished / "out" / ".a.jsonl.progress").write_text(damage)
    assert len(asked_by(unfinished)[0]) == 11


def test_answers_that_were_lost_are_made_anew(unfinished: Path) -> None:
    (unfinished / "out" / ".a.jsonl.answers").write_bytes(b"")
    asked, said = asked_by(unfinished)
    assert len(asked) == 11
    assert "unfinished answers were removed or changed" in said[0]
    (unfinished / "out" / "a.jsonl").unlink()
    asked, said = asked_by(unfinished)
    assert len(asked) == 11
    assert "it was removed or changed since" in said[0]


def test_a_file_that_no_run_has_written_is_not_replaced(tmp_path: Path) -> None:
    write_lines(tmp_path / "in" / "a.jsonl", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.jsonl").write_text("mine")
    totals, said = answer_folder(tmp_path / "in", tmp_path / "out", Scorer)
    assert totals.unread == 1
    assert "no run has recorded it" in said[0]
    assert (tmp_path / "out" / "a.jsonl").read_text() == "mine"


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "in" / "a.jsonl", 1)
    write_lines(tmp_path / "in" / "b.jsonl", 1)
    (tmp_path / "out").mkdir()
    with held(tmp_path / "out" / ".a.jsonl.lock", tmp_path / "out" / "a.jsonl"):
        totals, said = answer_folder(tmp_path / "in", tmp_path / "out", Scorer)
    assert totals.unread == 1
    assert "a.jsonl is being written by another run" in said[0]
    assert list(files_of(tmp_path / "out")) == ["b.jsonl"]
    assert answer_folder(tmp_path / "in", tmp_path / "out", Scorer)[0].unread == 0


def test_a_file_that_cannot_be_read_is_told_and_the_others_are_answered(tmp_path: Path) -> None:
    write_lines(tmp_path / "in" / "b.jsonl", 2)
    (tmp_path / "in" / "a.parquet").write_bytes(b"PAR1 not really")
    write_rows(tmp_path / "in" / "c.parquet", 2).write_bytes(
        (tmp_path / "in" / "c.parquet").read_bytes().replace(b"messages", b"sessages")
    )
    totals, said = answer_folder(tmp_path / "in", tmp_path / "out", Scorer)
    assert (totals.answers, totals.unread) == (2, 2)
    assert "a.parquet cannot be read as Parquet" in said[0]
    assert 'c.parquet has no column "messages" (it has source, sessages)' in said[1]
    assert list(files_of(tmp_path / "out")) == ["b.jsonl"]


def test_a_column_of_an_answer_does_not_hide_one_of_the_input(tmp_path: Path) -> None:
    write_rows(tmp_path / "in" / "a.parquet", 2, score=[1, 2])
    totals, said = answer_folder(tmp_path / "in", tmp_path / "out", Scorer)
    assert totals.unread == 1
    assert "has a column 'score' already; --column-prefix" in said[0]
    assert answer_folder(tmp_path / "in", tmp_path / "out", Scorer, column_prefix="rm_")[0].unread == 0
    after = parquet.read_table(tmp_path / "out" / "a.parquet")
    assert after["score"].to_pylist() == [1, 2]
    assert after["rm_score"].to_pylist() == [3.002, 3.002]


def test_a_row_that_is_not_utf8_is_an_error_in_its_place(tmp_path: Path) -> None:
    texts = pyarrow.array([b"fine", b"caf\xe9", b"too"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    parquet.write_table(pyarrow.table({"input": texts}), tmp_path / "a.parquet")
    first, second, third = read_rows(tmp_path / "a.parquet", ["input"])
    assert (first, third) == ({"input": "fine"}, {"input": "too"})
    assert str(second) == "not UTF-8: byte 0xe9 at byte 4"


@pytest.mark.parametrize("start", range(12))
def test_rows_are_read_from_any_row_on(tmp_path: Path, start: int) -> None:
    path = write_rows(tmp_path / "a.parquet", 11)
    rows = [row["source"] for row in read_rows(path, ["source"], start)]  # type: ignore[index]
    assert rows == answers_of("a", 11)[start:]


def test_only_what_decides_an_answer_is_a_setting(bundle: str, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    settings = answer_settings(opened, "onnxruntime", "score", {"truncation": "cut", "threads": 1, "batch_tokens": 9})
    assert sorted(settings) == ["bundle", "command", "engine", "truncation"]
    verified = dataclasses.replace(opened.manifest, parity={"conversations": 3})
    assert (
        answer_settings(dataclasses.replace(opened, manifest=verified), "onnxruntime", "score", {})["bundle"]
        == (settings["bundle"])
    )
    other = dataclasses.replace(opened.manifest, pad_token_id=1)
    assert (
        answer_settings(dataclasses.replace(opened, manifest=other), "onnxruntime", "score", {})["bundle"]
        != (settings["bundle"])
    )


def test_the_command_answers_a_folder_and_then_only_what_is_new(
    bundle: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_lines(source / "a.jsonl", 2)
    write_rows(source / "b.parquet", 2)
    (source / "notes.txt").write_text("")
    arguments = ["score", bundle, "-i", str(source), "-o", str(output)]
    assert main(arguments) == 0
    assert capfd.readouterr().err == f"rm-runtime: left out of {source}: notes.txt\n"
    scores = [json.loads(line)["score"] for line in (output / "a.jsonl").read_text().splitlines()]
    assert all(isinstance(score, float) for score in scores)
    stamps = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    write_lines(source / "c.jsonl", 1)
    assert main([*arguments, "--threads", "1"]) == 0
    assert {path: path.stat().st_mtime_ns for path in output.iterdir() if "c.jsonl" not in path.name} == stamps


def test_a_parquet_file_may_be_answered_with_json_lines(
    bundle: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows, lines = write_rows(tmp_path / "a.parquet", 6), write_lines(tmp_path / "a.jsonl", 6)
    for source, output in ((rows, "rows.jsonl"), (lines, "lines.jsonl")):
        assert main(["score", bundle, "-i", str(source), "-o", str(tmp_path / output)]) == 0
    assert (tmp_path / "rows.jsonl").read_bytes() == (tmp_path / "lines.jsonl").read_bytes()
    assert main(["score", bundle, "-i", str(rows)]) == 0
    assert capfd.readouterr().out == (tmp_path / "rows.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["-i", "in"], 2, "-o must name one too"),
        (["-i", "in", "-o", "a.jsonl"], 2, "-o must name one too"),
        (["-i", "a.jsonl", "-o", "in"], 2, "-i must name one too"),
        (["-i", "in", "-o", "in"], 1, "choose a folder outside of it"),
        (["-i", "in", "-o", "in/out"], 1, "choose a folder outside of it"),
        (["-i", "empty", "-o", "out"], 1, "holds no file that ends in .jsonl or .parquet"),
        (["-i", "a.jsonl", "-o", "out.parquet"], 1, "Parquet takes the columns of a Parquet input"),
        (["-o", "out.parquet"], 1, "Parquet takes the columns of a Parquet file"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    bundle: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "a.jsonl", 1)
    write_lines(tmp_path / "in" / "a.jsonl", 1)
    (tmp_path / "empty").mkdir()
    assert main(["score", bundle, *arguments]) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert reason in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "empty", "in"]
