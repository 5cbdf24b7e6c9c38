"""JSON lines in, JSON lines out."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rm_runtime.jsonl
from fake_models import CHAT, answer_of, pair_pm, pointwise
from rm_runtime.errors import EngineError, RequestError
from rm_runtime.families.pointwise import ArmoRM, DPARewardModel
from rm_runtime.json_requests import RequestLine, parse_json, parse_request, to_json
from rm_runtime.jsonl import answer_lines
from rm_runtime.results import Ranking

PROMPT = [{"role": "user", "content": "How long?"}]
OBJECTIVES = [f"objective-{index}" for index in range(19)]


def chat(answer: str) -> list[dict[str, str]]:
    return [*PROMPT, {"role": "assistant", "content": answer}]


CHAT_OF_TWELVE = dataclasses.replace(CHAT, max_length=12)


def scalar() -> Any:
    """A model that likes long answers, finds "nan" unscorable, and breaks at "broken"."""

    def outputs_of(rendered: str) -> dict[str, Any]:
        if "broken" in rendered:
            raise EngineError("onnxruntime failed: out of memory")
        answer = answer_of(rendered)
        return {"score": math.nan if answer == "nan" else math.inf if answer == "inf" else len(answer)}

    return pointwise(outputs_of)


def answers(model: Any, *lines: Any, **options: Any) -> list[dict[str, Any]]:
    """The answers to lines given as values, or as bytes to be taken literally."""
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return answers_to(model, b"\n".join(raw), **options)


def answers_to(model: Any, source: bytes, **options: Any) -> list[dict[str, Any]]:
    found = [answer for chunk in answer_lines(model, io.BytesIO(source), **options) for answer in chunk]
    parsed = [json.loads(answer.text, parse_constant=pytest.fail) for answer in found]
    for answer, document in zip(found, parsed, strict=True):
        assert "\n" not in answer.text
        assert answer.failed == ("error" in document)
        assert not answer.failed or document["line"] == answer.line
    return parsed


def test_a_conversation_gets_its_score() -> None:
    assert answers(scalar(), {"messages": chat("four")}) == [{"score": 4.0}]


def test_armorm_adds_rewards_gating_and_coefficients() -> None:
    outputs = {"score": 1.5, "rewards": [0.5] * 19, "gating": [0.25] * 19, "coefficients": [-1.0] * 19}
    model = pointwise(lambda _: outputs, ArmoRM, objectives=OBJECTIVES, gate_pattern=[1])
    (answer,) = answers(model, {"messages": chat("x")})
    assert list(answer) == ["score", "rewards", "gating", "coefficients"]
    assert answer == outputs


def test_dpa_adds_rewards_and_helpsteer() -> None:
    model = pointwise(lambda _: {"score": 50, "rewards": range(50, 60)}, DPARewardModel, objectives=OBJECTIVES[:10])
    (answer,) = answers(model, {"messages": chat("x")})
    assert answer == {"score": 50, "rewards": list(range(50, 60)), "helpsteer": [2, 2.05, 2.1, 2.15, 2.2]}


def test_responses_are_ranked_by_a_pointwise_model() -> None:
    (answer,) = answers(scalar(), {"messages": PROMPT, "responses": ["two", "three", "one", "seventh"]})
    assert answer == {"ranks": [3, 2, 3, 1], "scores": [3, 5, 3, 7]}


def test_two_responses_of_the_pairwise_model_add_what_the_comparison_tells() -> None:
    model = pair_pm(lambda a, b: (len(a), len(b)))
    (answer,) = answers(model, {"messages": PROMPT, "responses": ["four", "twelve"]})
    assert list(answer) == ["ranks", "scores", "probability", "order_probabilities", "logits"]
    assert answer["logits"] == [[4, 6], [6, 4]]
    assert answer["probability"] == pytest.approx(1 / (1 + math.exp(2)))
    assert answer["scores"] == [answer["probability"], 1 - answer["probability"]]
    assert answer["ranks"] == [2, 1]


def test_other_numbers_of_responses_of_the_pairwise_model_are_only_ranked() -> None:
    model = pair_pm(lambda a, b: (len(a), len(b)))
    lines = [{"messages": PROMPT, "responses": ["x" * n for n in counts]} for counts in ([1, 3, 2], [1], [2, 1])]
    three, one, two = answers(model, *lines)
    assert list(three) == list(one) == ["ranks", "scores"]
    assert three["ranks"] == [3, 1, 2]
    assert one == {"ranks": [1], "scores": [1]}
    assert two["ranks"] == [1, 2]


class Ranker:
    """A stand-in for PairRM, which has its own interface."""

    family = "pairrm"

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def rank(self, first: Any, second: Any, instructions: Any = None, return_scores: bool = False) -> Any:
        self.calls.append((first, second, instructions, return_scores))
        if not return_scores:
            return Ranking.from_scores([len(text) for text in second])
        if "bad" in second[0]:
            raise RequestError("candidate 0 is bad")
        return np.array([[len(text) for text in second[0]]], np.float32)


def test_pairrm_takes_messages_or_its_own_input_and_candidates() -> None:
    model = Ranker()
    got = answers(
        model,
        {"messages": PROMPT, "responses": ["a", "bb"]},
        {"input": "in", "candidates": ["aa", "b", "cc"], "instruction": "do"},
        {"input": "in", "candidates": ["aa", "b"]},
        {"input": "in", "candidates": ["bad", "b"]},
        {"messages": chat("x")},
        {"messages": ["in"], "responses": ["aa"]},
    )
    assert got[:3] == [
        {"ranks": [2, 1], "scores": [1, 2]},
        {"ranks": [1, 3, 1], "scores": [2, 1, 2]},
        {"ranks": [1, 2], "scores": [2, 1]},
    ]
    assert got[3]["error"] == "candidate 0 is bad"
    assert 'send "responses"' in got[4]["error"]
    assert "message 0" in got[5]["error"]
    assert len(model.calls) == 4
    assert model.calls[1:3] == [
        (["in"], [["aa", "b", "cc"]], ["do"], True),
        (["in"], [["aa", "b"]], None, True),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON: Expecting property name enclosed in double quotes at character 2"),
        (b"not json", "not JSON: Expecting value at character 1"),
        (b'{"messages": []} {}', "not JSON: Extra data"),
        (b'{"messages": NaN}', "not JSON: NaN"),
        (b'{"x": -Infinity}', "not JSON: -Infinity"),
        (b'{"x": 1e999}', "the number 1e999 is out of range"),
        (b'{"x": ' + b"1" * 5000 + b"}", "too many digits"),
        (b'{"x": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"messages": "caf\xe9"}', "not UTF-8: byte 0xe9 at byte 18"),
        (b"[]", "a request is a JSON object, not an empty array"),
        (b"null", "a request is a JSON object, not null"),
        (b"{}", 'a request needs "messages", or for PairRM "input" and "candidates"'),
        (b'{"messages": null}', 'a request needs "messages"'),
        (b'{"messages": "hi"}', '"messages" must be an array of messages, not a string'),
        (b'{"messages": []}', "empty"),
        (b'{"messages": [1]}', "message 0"),
        (b'{"messages": [{"role": "user"}]}', "message 0 has no 'content'"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "lone surrogate"),
        (
            b'{"messages": [], "responses": []}',
            '"responses" must be an array of at least one text, not an empty',
        ),
        (b'{"messages": [], "responses": {}}', "not an object"),
        (b'{"messages": [], "responses": ["a", 1]}', '"responses" holds a number at place 1, not a text'),
        (b'{"messages": [], "responses": ["a", true]}', '"responses" holds a boolean at place 1, not a text'),
        (b'{"input": "x", "candidates": ["a"]}', 'only PairRM takes "input" and "candidates"'),
        (b'{"input": "x"}', 'a request with "input" needs "candidates"'),
        (b'{"input": 1, "candidates": ["a"]}', '"input" must be a text, not a number'),
        (b'{"id": [1], "messages": []}', '"id" must be a string or a number'),
    ],
)
def test_a_bad_line_gives_an_error_in_its_place_and_the_others_are_scored(line: bytes, reason: str) -> None:
    good = {"messages": chat("four")}
    first, bad, last = answers(scalar(), good, line, good)
    assert first == last == {"score": 4.0}
    assert bad["line"] == 2
    assert reason in bad["error"]


def test_a_conversation_without_a_number_is_an_error_of_its_line() -> None:
    got = answers(scalar(), {"messages": chat("nan")}, {"messages": chat("inf")}, {"messages": chat("x")})
    assert "the model gave no number" in got[0]["error"]
    assert "not finite" in got[1]["error"]
    assert got[2] == {"score": 1.0}


def test_one_unscorable_response_fails_its_line_and_is_named() -> None:
    (answer,) = answers(scalar(), {"messages": PROMPT, "responses": ["a", "nan", "b"]})
    assert answer["error"].startswith("response 1: ")


def test_a_failed_engine_fails_the_run_not_the_line() -> None:
    with pytest.raises(EngineError):
        answers(scalar(), {"messages": chat("broken")})


def test_ids_are_passed_on_to_scores_and_errors() -> None:
    got = answers(
        scalar(),
        {"id": "a", "messages": chat("x")},
        {"messages": chat("x"), "id": 7, "other": [1]},
        {"id": None},
        {"id": "\ud83d", "messages": chat("x")},
        {"id": "ünï", "messages": chat("x")},
    )
    assert [answer.get("id", "absent") for answer in got] == ["a", 7, None, "\ud83d", "ünï"]
    assert "error" in got[2]


def test_a_null_is_an_absent_key() -> None:
    line = {"messages": chat("x"), "responses": None, "input": None, "candidates": None, "instruction": None}
    assert answers(scalar(), line) == [{"score": 1.0}]


def test_blank_lines_are_skipped_but_counted_and_line_ends_may_be_windows() -> None:
    line = json.dumps({"messages": chat("four")}).encode()
    got = answers_to(scalar(), b"\xef\xbb\xbf" + line + b"\r\n\r\n  \t\n" + b"oops\r\n" + line)
    assert got[0] == got[2] == {"score": 4.0}
    assert got[1]["line"] == 4


def test_an_empty_input_has_no_answers() -> None:
    assert answers_to(scalar(), b"") == answers_to(scalar(), b"\n \n") == []


def test_ranking_refuses_lines_without_responses() -> None:
    got = answers(scalar(), {"messages": chat("x")}, {"messages": PROMPT, "responses": ["a"]}, ranking=True)
    assert got[0]["error"] == 'ranking needs "responses", the answers to rank'
    assert got[1] == {"ranks": [1], "scores": [1]}


def test_scoring_with_the_pairwise_model_needs_responses() -> None:
    got = answers(pair_pm(lambda a, b: (1, 0)), {"messages": chat("x")}, {"input": "x", "candidates": ["a", "b"]})
    assert 'send "responses"' in got[0]["error"]
    assert "only PairRM" in got[1]["error"]


def test_a_line_that_is_too_long_is_an_error_and_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rm_runtime.jsonl, "MAX_LINE_BYTES", 200)
    good = json.dumps({"messages": chat("x")}).encode()

    class Counted(io.BytesIO):
        def readline(self, size: int | None = -1) -> bytes:
            assert size == 200
            return super().readline(size)

    padded = good + b" " * (199 - len(good))
    source = Counted(b"\n".join([good, b"[" * 1000, padded, b"x" * 199, b"x" * 200, good]))
    found = [answer for chunk in answer_lines(scalar(), source) for answer in chunk]
    assert [answer.line for answer in found] == [1, 2, 3, 4, 5, 6]
    assert [answer.failed for answer in found] == [False, True, False, True, True, False]
    assert [("longer than 200 bytes" in answer.text) for answer in found] == [
        False,
        True,
        False,
        False,
        True,
        False,
    ]


def test_a_stream_is_read_in_chunks_and_never_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rm_runtime.jsonl, "CHUNK_LINES", 3)
    line = json.dumps({"messages": chat("x")}).encode() + b"\n"
    source = io.BytesIO(line * 8)
    sizes = []
    for chunk in answer_lines(scalar(), source):
        sizes.append(len(chunk))
        assert source.tell() == len(line) * sum(sizes)
    assert sizes == [3, 3, 2]


def test_a_chunk_is_bounded_in_bytes_and_counts_a_line_once_for_each_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = json.dumps({"messages": PROMPT, "responses": ["a", "b", "c"]}).encode() + b"\n"
    monkeypatch.setattr(rm_runtime.jsonl, "CHUNK_BYTES", 6 * len(line.strip()))
    assert [len(chunk) for chunk in answer_lines(scalar(), io.BytesIO(line * 5))] == [2, 2, 1]


def test_a_chunk_is_one_batched_request() -> None:
    model = scalar()
    answers(model, *({"messages": chat("x" * n)} for n in range(40)))
    assert len(model.engine.batches) < 5


@given(st.lists(st.sampled_from([b"", b"{}", b"oops", b'{"messages": [{"role": "user", "content": "a"}]}'])))
def test_every_line_that_is_not_blank_has_its_answer_in_its_place(lines: list[bytes]) -> None:
    found = [answer for chunk in answer_lines(scalar(), io.BytesIO(b"\n".join(lines))) for answer in chunk]
    assert [answer.line for answer in found] == [number for number, line in enumerate(lines, 1) if line]
    assert [answer.failed for answer in found] == [not line.startswith(b'{"m') for line in lines if line]


@given(st.binary(max_size=60))
def test_any_bytes_get_an_answer_and_never_an_exception(source: bytes) -> None:
    got = answers_to(scalar(), source)
    assert len(got) == sum(bool(line.strip()) for line in source.removeprefix(b"\xef\xbb\xbf").split(b"\n"))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_any_json_value_is_a_request_or_a_request_error(document: Any) -> None:
    for value in (
        document,
        {"messages": document},
        {"messages": [], "responses": document},
        {"input": document},
    ):
        with contextlib.suppress(RequestError):
            assert isinstance(parse_request(value), RequestLine)


def test_json_is_strict_in_both_directions() -> None:
    assert to_json({"text": "ünï \u2028 \x00"}) == '{"text": "ünï \u2028 \\u0000"}'
    assert to_json({"text": "\ud800ü"}) == '{"text": "\\ud800\\u00fc"}'
    with pytest.raises(ValueError, match="Out of range"):
        to_json({"score": math.nan})
    assert parse_json('{"a": [1, 2.5, "ü"]}'.encode()) == {"a": [1, 2.5, "ü"]}


def test_a_cut_prompt_says_so_in_its_line() -> None:
    model = pointwise(lambda _: {"score": 1}, prompt=CHAT_OF_TWELVE)
    (answer,) = answers(model, {"messages": chat("many words " * 9)})
    assert answer["truncated"][0]["side"] == "right"
