"""Chats of realistic length, through the bundle's own prompter."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_models import CHAT, FOLDER, PAIR, manifest
from prompt_cases import load_tokenizer
from rm_runtime.bench.chats import ANSWER_IDS, LogNormal, draw_chats
from rm_runtime.bench.rows import rows_of
from rm_runtime.bundle import Bundle
from rm_runtime.errors import RequestError
from rm_runtime.prompt_spec import PromptSpec, SegmentsPrompt

SEGMENTS = SegmentsPrompt("<|source|>", "<|candidate1|>", "<|candidate2|>", candidate_prefix="<|candidate|>")


def bundle_of(prompt: PromptSpec, tokenizer: str = "llama3") -> Bundle:
    return Bundle(FOLDER / tokenizer, manifest("scalar", prompt))


def test_lengths_have_the_mean_they_are_drawn_with() -> None:
    rng = np.random.default_rng(0)
    assert np.mean([ANSWER_IDS.draw(rng) for _ in range(50_000)]) == pytest.approx(ANSWER_IDS.mean, rel=0.05)
    assert min(LogNormal(0.01, 1.0).draw(rng) for _ in range(10)) == 1


def test_chats_alternate_end_in_the_users_turn_and_are_the_same_for_one_seed() -> None:
    chats = draw_chats(50, 2, 1.0, 2000, seed=4)
    for chat in chats:
        roles = [message["role"] for message in chat.messages]
        assert roles == [("user", "assistant")[place % 2] for place in range(len(roles))]
        assert roles[-1] == "user"
        assert len(chat.responses) == 2
        words = sum(len(text.split()) for text in [*(m["content"] for m in chat.messages), *chat.responses])
        assert words <= 2000
    assert chats == draw_chats(50, 2, 1.0, 2000, seed=4)
    assert chats != draw_chats(50, 2, 1.0, 2000, seed=5)


@pytest.mark.parametrize("prompt", [CHAT, PAIR])
def test_rows_are_prompts_of_the_bundle_and_none_is_cut(prompt: Any) -> None:
    rows = rows_of(bundle_of(prompt), 40, seed=0)
    chat = prompt.chat if prompt is PAIR else prompt
    assert len(rows.ids) == 40
    assert max(rows.lengths) < chat.max_length
    assert all(row[0] == chat.bos_token_id for row in rows.ids) or prompt is PAIR
    assert all(tuple(row[len(row) - len(chat.required_suffix) :]) == chat.required_suffix for row in rows.ids)
    assert rows.described() == rows_of(bundle_of(prompt), 40, seed=0).described()
    assert rows.described()["sha256"] != rows_of(bundle_of(prompt), 40, seed=1).described()["sha256"]


def test_a_row_of_a_segments_prompt_holds_both_candidates() -> None:
    rows = rows_of(bundle_of(SEGMENTS, "deberta"), 10, seed=0)
    tokenizer = load_tokenizer("deberta")
    for row in rows.ids:
        for prefix in ("<|source|>", "<|candidate1|>", "<|candidate2|>"):
            assert (row == tokenizer.token_to_id(prefix)).sum() == 1


def lines(path: Path, *documents: Any) -> Path:
    path.write_text("".join(f"{json.dumps(document)}\n" for document in documents))
    return path


def test_chats_of_a_file_are_used_from_its_top_and_again(tmp_path: Path) -> None:
    question = [{"role": "user", "content": "Hi"}]
    whole = [*question, {"role": "assistant", "content": "Hello"}]
    path = lines(tmp_path / "c.jsonl", {"messages": question, "responses": ["Hello", "Go away"]}, {"messages": whole})
    rows = rows_of(bundle_of(CHAT), 4, seed=0, chats=path)
    assert [row.tolist() for row in rows.ids[:1]] == [row.tolist() for row in rows.ids[2:3]]
    assert rows.ids[0].tolist() == rows.ids[3].tolist() != rows.ids[1].tolist()
    assert rows.origin == {"source": str(path)}
    (compared,) = rows_of(bundle_of(PAIR), 1, seed=0, chats=path).ids
    assert "Go away" in load_tokenizer("llama3").decode(compared.tolist())


@pytest.mark.parametrize(
    ("prompt", "document", "reason"),
    [
        (CHAT, {"text": "Hi"}, r"line 1: a request needs \"messages\""),
        (CHAT, {"input": "Hi", "candidates": ["a"]}, r"line 1: a chat to measure needs"),
        (CHAT, {"messages": [{"role": "user"}]}, "line 1: "),
        (PAIR, {"messages": [{"role": "user", "content": "Hi"}], "responses": ["a"]}, "line 1: .*must hold two"),
    ],
)
def test_a_line_that_cannot_be_measured_is_named(tmp_path: Path, prompt: Any, document: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        rows_of(bundle_of(prompt), 3, seed=0, chats=lines(tmp_path / "c.jsonl", document))


def test_an_empty_file_of_chats_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no chat"):
        rows_of(bundle_of(CHAT), 3, seed=0, chats=lines(tmp_path / "c.jsonl"))


def test_a_bundle_of_short_prompts_gets_short_chats() -> None:
    short = dataclasses.replace(CHAT, max_length=200)
    assert max(rows_of(bundle_of(short), 20, seed=0).lengths) <= 200
