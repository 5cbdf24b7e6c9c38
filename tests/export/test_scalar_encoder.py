"""DebertaV2ForSequenceClassification: the bundle's scores and prompts are transformers' own."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import checkpoints
from conversations import conversations
from rm_calibration.comparison import compare_scores
from rm_export.calibrate import CalibrationOptions
from rm_export.checkpoint import open_checkpoint
from rm_export.errors import CheckpointError
from rm_export.exporter import export_checkpoint
from rm_export.options import Options
from rm_export.quantisation import Quantisation
from rm_export.reference import open_reference
from rm_runtime import load
from rm_runtime.batching import pad_rows, run_rows
from rm_runtime.bundle import Bundle, open_bundle
from rm_runtime.engines import open_engine
from rm_runtime.prompt_spec import ChatPrompt
from rm_runtime.prompts import ChatPrompter, Prompt

TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2}
"""Largest error as a part of the outputs' deviation: the bounds of all families (test_parity.py)."""
MAX_LENGTH = 128
"""max_position_embeddings of the tiny checkpoint."""


def exported(folder: Path, precision: str = "fp32", options: Options | None = None, **made: Any) -> Bundle:
    checkpoint = checkpoints.scalar_encoder(folder / "checkpoint", **made)
    return open_bundle(
        export_checkpoint(open_checkpoint(checkpoint), folder / "bundle", precision=precision, options=options)
    )


def prompts_of(bundle: Bundle, chats: Any) -> list[Prompt]:
    assert isinstance(bundle.manifest.prompt, ChatPrompt)
    prompts = ChatPrompter(bundle.manifest.prompt, bundle.tokenizer()).encode(chats)
    assert all(isinstance(prompt, Prompt) for prompt in prompts)
    return [prompt for prompt in prompts if isinstance(prompt, Prompt)]


def rows_of(bundle: Bundle) -> list[NDArray[np.int64]]:
    return [np.asarray(prompt.ids, np.int64) for prompt in prompts_of(bundle, conversations(220))]


def outputs(bundle: Bundle, rows: list[NDArray[np.int64]]) -> dict[str, NDArray[np.float32]]:
    return run_rows(open_engine(bundle, threads=1), rows, bundle.manifest.pad_token_id)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("num_labels", [1, 3])
def test_every_output_is_transformers_own(tmp_path: Path, num_labels: int, precision: str) -> None:
    bundle = exported(tmp_path, precision, Options(score_label=num_labels - 1), num_labels=num_labels)
    assert bundle.manifest.family == "scalar"  # found by `auto`
    assert bundle.manifest.pooling == "FIRST-TOKEN"
    rows = rows_of(bundle)
    checkpoint = open_checkpoint(tmp_path / "checkpoint")
    expected = open_reference(checkpoint, "scalar", bundle.manifest.parameters).run(rows, threads=1)
    found = outputs(bundle, rows)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        spread = expected[name].std(axis=0)
        assert (spread > 0.1).all()
        assert (np.abs(values - expected[name]).max(axis=0) <= TOLERANCE[precision] * spread).all()
    if precision == "fp32":
        scores = expected["score"]
        pairs = [(i, j) for i, j in combinations(range(len(rows)), 2) if scores[i] != scores[j]]
        assert all((found["score"][i] > found["score"][j]) == (scores[i] > scores[j]) for i, j in pairs)


def test_prompts_are_those_of_the_tokenizer_called_with_question_and_answer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    bundle = exported(tmp_path, max_position_embeddings=4096)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "checkpoint" / "tokenizer.json"), sep_token="[SEP]", cls_token="[CLS]"
    )
    chats = [chat for chat in conversations(220, system=False) if len(chat) == 2]
    assert len(chats) > 100
    for chat, prompt in zip(chats, prompts_of(bundle, chats), strict=True):
        assert prompt.ids.tolist() == tokenizer(chat[0]["content"], chat[1]["content"])["input_ids"]


def test_a_long_chat_loses_the_end_of_its_answer_and_keeps_its_last_separator(tmp_path: Path) -> None:
    bundle = exported(tmp_path)
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "because " * 200}]
    (prompt,) = prompts_of(bundle, [chat])
    separator = bundle.tokenizer().token_to_id("[SEP]")
    assert len(prompt.ids) == MAX_LENGTH
    assert prompt.ids[-1] == separator
    assert prompt.ids.tolist().count(separator) == 2
    assert prompt.truncation[0].side == "right"


def test_a_row_does_not_depend_on_its_batch_and_a_broken_mask_is_nan(tmp_path: Path) -> None:
    bundle = exported(tmp_path)
    rows = [row for row in rows_of(bundle)[:40] if len(row) > 4][:6]
    together = outputs(bundle, rows)["score"]
    alone = np.concatenate([outputs(bundle, [row])["score"] for row in rows])
    assert np.abs(together - alone).max() < TOLERANCE["fp32"] * alone.std()
    ids, mask = pad_rows(rows, bundle.manifest.pad_token_id)
    mask[1], mask[2, 0] = 0, 0  # no token; padded on the left
    broken = open_engine(bundle, threads=1).run({"input_ids": ids, "attention_mask": mask})["score"]
    assert np.flatnonzero(np.isnan(broken)).tolist() == [1, 2]


def test_the_loaded_bundle_ranks_answers(tmp_path: Path) -> None:
    exported(tmp_path)
    model = load(tmp_path / "bundle", engine="onnxruntime", threads=1)
    question = [{"role": "user", "content": "What is two and two?"}]
    answers = ["Four.", "It is five, I think.", "Why?"]
    ranking = model.rank(question, answers)
    scores = [model.score([[*question, {"role": "assistant", "content": answer}]])[0].score for answer in answers]
    assert ranking.best == int(np.argmax(scores))


def test_int8_writes_integers_into_every_layer_and_keeps_the_order(tmp_path: Path) -> None:
    calibration = CalibrationOptions(observer="minmax", alphas=(0.0,), max_flip_rate=1.0, max_tokens=2000, threads=1)
    checkpoint = open_checkpoint(checkpoints.scalar_encoder(tmp_path / "checkpoint"))
    scores = {}
    for precision in ("fp32", "int8"):
        folder = tmp_path / precision
        bundle = open_bundle(
            export_checkpoint(checkpoint, folder, precision=precision, quantisation=Quantisation(options=calibration))
        )
        scores[precision] = outputs(bundle, rows_of(bundle))["score"]
    layers = {node.name.split("/")[2] for node in ir.load(tmp_path / "int8" / "model.onnx").graph if quantises(node)}
    assert layers == {"layer.0", "layer.1", "layer.2"}
    assert compare_scores(scores["fp32"], scores["int8"]).spearman > 0.9


def quantises(node: ir.Node) -> bool:
    return node.op_type == "QuantizeLinear" and (node.name or "").startswith("deberta/encoder/")


def test_another_pooler_activation_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = checkpoints.scalar_encoder(tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"pooler_hidden_act": "tanh"}))
    with pytest.raises(CheckpointError, match="pooler_hidden_act 'tanh'"):
        export_checkpoint(open_checkpoint(checkpoint), tmp_path / "bundle")
