"""rm_score against rm_runtime, through the whole of both: the same lines in, the same answers out."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import checkpoints
import cpp_builds
from conversations import SPECIAL_TEXT, conversations, preference_groups
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_export.options import Options
from rm_runtime import load
from rm_runtime.jsonl import answer_lines

TOLERANCE = 1e-6
"""Of float32 sums in another order: batches differ where the Python runtime computes common prefixes once."""
POINTWISE = {
    "armorm": checkpoints.armorm,
    "grm": checkpoints.grm,
    "dpa-rm": checkpoints.dpa_rm,
    "scalar-qwen2": partial(checkpoints.scalar, backbone="qwen2"),
    "scalar-gemma": partial(checkpoints.scalar, backbone="gemma"),
    "scalar-encoder": checkpoints.scalar_encoder,
}
PAIRWISE = {"pair-pm": checkpoints.pair_pm, "pairrm": checkpoints.pairrm}

ODD_REQUESTS: tuple[Any, ...] = (
    {"messages": []},
    {"messages": [1]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": 3}]},
    {"messages": [{"role": None, "content": "x"}]},
    {"messages": [{"role": "user", "content": "x", "name": "y"}]},
    {"messages": [{"role": "assistant", "content": "x"}]},
    {"messages": [{"role": "system", "content": "x"}]},
    {"messages": [{"role": "user", "content": "x"}] * 3},
    {"messages": "x"},
    {"messages": [{"role": "user", "content": "q"}], "responses": []},
    {"messages": [{"role": "user", "content": "q"}], "responses": ["a", 1]},
    {"messages": [{"role": "user", "content": "q"}], "responses": ["a", "b", "a", "c", "a"]},
    {"messages": [{"role": "user", "content": "q"}], "responses": ["same", "same"]},
    {"messages": [], "responses": ["a", "b"]},
    {"messages": [{"role": "user", "content": "q"}], "responses": None},
    {"input": 1, "candidates": ["a"]},
    {"input": "a"},
    {"candidates": ["a"]},
    {"input": "", "candidates": ["", ""], "instruction": 5},
    {"id": [1], "messages": []},
    {"id": "x", "messages": None},
    {},
    [],
    "text",
    7,
    None,
    True,
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("bundles")

    def bundle(family: str, options: Options | None = None) -> Path:
        name = folder / (family if options is None else f"{family}-options")
        if not name.exists():
            checkpoint = {**POINTWISE, **PAIRWISE}[family](folder / f"{name.name}-checkpoint")
            export_checkpoint(open_checkpoint(checkpoint), name, options=options)
        return name

    return bundle


def assert_same_answers(bundle: Path, requests: list[Any], **options: str) -> list[Any]:
    lines = "".join(f"{json.dumps(request)}\n" for request in requests).encode()
    model = load(bundle, engine="onnxruntime", threads=1, **options)
    expected = [json.loads(answer.text) for chunk in answer_lines(model, io.BytesIO(lines)) for answer in chunk]
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    done = cpp_builds.score(bundle, lines, *flags)
    got = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(got) == len(expected)
    for request, one, other in zip(requests, got, expected, strict=True):
        assert list(one) == list(other) if isinstance(one, dict) else True, request
        assert one == approximately(other), request
    assert done.returncode == (1 if any("error" in answer for answer in expected) else 0)
    return expected


def approximately(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: approximately(item) for key, item in value.items()}
    if isinstance(value, list):
        return [approximately(item) for item in value]
    return pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE) if isinstance(value, float) else value


@pytest.mark.parametrize("family", ["armorm", "grm", "dpa-rm", "scalar-qwen2", "scalar-encoder"])
def test_scores_equal_the_python_runtimes(family: str, bundles: Any) -> None:
    chats: list[Any] = [{"messages": chat} for chat in conversations(220, system=family != "dpa-rm")]
    groups = [{"messages": chat, "responses": answers} for chat, answers in preference_groups(8, special_text=True)]
    answers = assert_same_answers(bundles(family), [*chats, *groups])
    assert sum("score" in answer for answer in answers) > 200


@pytest.mark.parametrize("family", PAIRWISE)
def test_rankings_and_comparisons_equal_the_python_runtimes(family: str, bundles: Any) -> None:
    requests = [
        {"messages": [{**chat[-1], "content": chat[-1]["content"][:80]}], "responses": [text[:80] for text in answers]}
        for chat, answers in preference_groups(200, seed=1, responses=2)
    ]
    for chat, answers in preference_groups(8, seed=2, special_text=True):
        requests.append({"messages": chat, "responses": answers})
    answers = assert_same_answers(bundles(family), requests)
    assert not any("error" in answer for answer in answers)


def test_pairrms_own_requests_are_answered_as_in_python(bundles: Any) -> None:
    requests = [
        {"input": chat[-1]["content"], "candidates": answers, "instruction": None if place % 2 else "Answer. "}
        for place, (chat, answers) in enumerate(preference_groups(8, seed=3))
    ]
    requests.append({"input": "long " * 2000, "candidates": ["a " * 900, "b", "a " * 900]})
    requests.append({"input": "<|candidate|> [SEP] x", "candidates": ["[SEP] <|candidate1|>", "<|source|>"]})
    assert_same_answers(bundles("pairrm"), requests)


@pytest.mark.parametrize("family", [*POINTWISE, *PAIRWISE])
def test_every_odd_request_gets_the_python_runtimes_error(family: str, bundles: Any) -> None:
    assert_same_answers(bundles(family), list(ODD_REQUESTS))


@pytest.mark.parametrize("special_text", ["token", "text", "error"])
@pytest.mark.parametrize("family", ["armorm", "scalar-qwen2", "scalar-encoder", "pair-pm", "pairrm"])
def test_special_tokens_as_text_are_read_as_in_python(family: str, special_text: str, bundles: Any) -> None:
    texts = [*SPECIAL_TEXT, "plain", "<|source|> a <|candidate1|>", "[ＣＬＳ] ［SEP］ <|im_start|>system", "<|eot_id|"]
    requests: list[Any] = []
    for text in texts:
        requests.append(
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f" {text}{text}"}]}
        )
        requests.append({"messages": [{"role": "user", "content": text}], "responses": ["no", text]})
    assert_same_answers(bundles(family), requests, special_text=special_text)


@pytest.mark.parametrize("truncation", ["cut", "error"])
@pytest.mark.parametrize("family", ["armorm", "dpa-rm", "pair-pm"])
def test_long_prompts_are_cut_or_refused_as_in_python(family: str, truncation: str, bundles: Any) -> None:
    options = Options(max_length=160)
    requests: list[Any] = []
    for words in (1, 20, 40, 80, 300):
        question = {"role": "user", "content": "why " * words}
        requests.append({"messages": [question, {"role": "assistant", "content": "because " * words}]})
        requests.append({"messages": [question], "responses": ["because " * words, "so"]})
    answers = assert_same_answers(bundles(family, options), requests, truncation=truncation)
    assert any("truncated" in answer for answer in answers) == (truncation == "cut")


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_are_cut_on_the_bundles_side(side: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(checkpoints.grm(tmp_path / "checkpoint"))
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", options=Options(max_length=40, truncation_side=side))  # type: ignore[arg-type] - one of its two literals
    chat = [{"role": "user", "content": "one two three " * 9}, {"role": "assistant", "content": "four five six " * 9}]
    (answer,) = assert_same_answers(bundle, [{"messages": chat}])
    assert answer["truncated"][0]["side"] == side


def test_a_small_batch_budget_changes_no_score(bundles: Any) -> None:
    chats = [{"messages": chat} for chat in conversations(60, seed=4)]
    lines = "".join(f"{json.dumps(chat)}\n" for chat in chats).encode()
    small, large = (
        [
            json.loads(line)
            for line in cpp_builds.score(bundles("grm"), lines, "--batch-tokens", str(tokens)).stdout.splitlines()
        ]
        for tokens in (64, 8192)
    )
    assert small == approximately(large)


def test_a_rendered_chat_scores_as_the_chat(bundles: Any) -> None:
    bundle = bundles("armorm")
    chats = conversations(40, seed=7)
    pieces = load(bundle, engine="onnxruntime").bundle.manifest.prompt.pieces
    requests = [{"messages": chat} for chat in chats] + [{"text": pieces.render(chat)} for chat in chats]
    done = cpp_builds.score(bundle, "".join(f"{json.dumps(request)}\n" for request in requests).encode())
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers[:40] == approximately(answers[40:])


def test_a_bundle_without_pieces_scores_rendered_text_and_asks_for_it(bundles: Any, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(checkpoints.grm(tmp_path / "checkpoint"))
    template = "{{ bos_token }}{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", options=Options(chat_template=template))
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    bos = load(bundle, engine="onnxruntime").bundle.manifest.prompt.variables["bos_token"]
    lines = "".join(f"{json.dumps(line)}\n" for line in ({"messages": chat}, {"text": f"{bos}HIYO"}))
    refused, scored = (json.loads(line) for line in cpp_builds.score(bundle, lines.encode()).stdout.splitlines())
    assert "send rendered text" in refused["error"]
    expected = load(bundle, engine="onnxruntime").score([chat])[0].score
    assert scored["score"] == approximately(expected)


def best_of_n() -> list[Any]:
    question = {"role": "user", "content": "Which of these answers is the best one, and why? " * 12}
    answers = [f"It is number {number}, because " + "so " * number for number in range(9)]
    return [{"messages": [question], "responses": answers}, {"messages": [question], "responses": answers[:3]}]


@pytest.mark.parametrize("family", ["armorm", "grm", "scalar-qwen2", "pair-pm"])
def test_answers_behind_one_prompt_score_as_in_python(family: str, bundles: Any) -> None:
    assert_same_answers(bundles(family), best_of_n())


def test_a_common_prompt_is_computed_once_by_the_graph_for_it(bundles: Any, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(bundles("grm"), tmp_path / "bundle"))
    graph = bundle / "model.prefix.onnx"
    graph.write_bytes(b"x" * graph.stat().st_size)
    lines = "".join(f"{json.dumps(request)}\n" for request in best_of_n()).encode()
    opened = cpp_builds.score(bundle, lines)
    assert opened.returncode == 1
    assert "model.prefix.onnx" in opened.stderr.decode()
    assert cpp_builds.score(bundle, b"").returncode == 0  # it is opened when it first pays
    in_full = cpp_builds.score(bundle, lines, "--no-share-prefixes")
    assert [json.loads(line)["scores"] for line in in_full.stdout.splitlines()] == approximately(
        [json.loads(line)["scores"] for line in cpp_builds.score(bundles("grm"), lines).stdout.splitlines()]
    )
