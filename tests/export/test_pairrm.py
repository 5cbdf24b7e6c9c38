"""PairRM checkpoints in both layouts -> graph and prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

import checkpoints
from rm_calibration.conversations import default_conversations
from rm_export import hub
from rm_export.build import build_model
from rm_export.checkpoint import Checkpoint, open_checkpoint
from rm_export.errors import CheckpointError
from rm_export.exporter import export_checkpoint
from rm_export.families import pairrm, recognise
from rm_export.options import Options
from rm_export.questions import encode_questions, questions_of
from rm_export.reference import open_reference
from rm_runtime.batching import pad_rows, run_rows
from rm_runtime.bundle import open_bundle
from rm_runtime.engines import open_engine
from rm_runtime.prompt_spec import SegmentsPrompt
from rm_runtime.prompts import Prompt

TOLERANCE = 1e-4
"""Largest error of a float32 logit, as a part of the logits' standard deviation."""
PREFIX_IDS = (1040, 1041, 1042)
LAYOUTS = ("PairRM-hf", "PairRM")


def opened(folder: Path, **options: Any) -> Checkpoint:
    return open_checkpoint(checkpoints.pairrm(folder, **options))


def session(checkpoint: Checkpoint, options: Options | None = None) -> onnxruntime.InferenceSession:
    model = build_model(pairrm.plan(checkpoint, options or Options()), "tiny")
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())


def logits(graph: onnxruntime.InferenceSession, rows: list[NDArray[np.int64]]) -> NDArray[np.float32]:
    ids, mask = pad_rows(rows, 0)
    score, logit = graph.run(["score", "logit"], {"input_ids": ids, "attention_mask": mask})
    assert np.array_equal(score, logit, equal_nan=True)
    return np.asarray(logit)


def row(length: int, seed: int, *, ordered: bool = True) -> NDArray[np.int64]:
    """Random ids with the three prefixes somewhere among them."""
    generator = np.random.default_rng([length, seed])
    ids = generator.integers(4, 1039, length)
    places = generator.choice(length, 3, replace=False)
    ids[sorted(places) if ordered else places] = PREFIX_IDS
    return ids


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"n_tasks": 3}, {"dtype": "bfloat16", "shards": 2}], ids=str)
def test_logits_are_the_references(tmp_path: Path, layout: Any, options: dict[str, Any]) -> None:
    pytest.importorskip("transformers")
    checkpoint = opened(tmp_path, layout=layout, **options)
    rows = [row(length, seed, ordered=seed % 2 == 0) for length in (3, 8, 33, 70, 300, 700) for seed in range(4)]
    rows += [np.append(row(40, 0), prefix) for prefix in PREFIX_IDS]  # of two the first is read
    reference = open_reference(
        checkpoint, "pairrm", {"prefix_ids": PREFIX_IDS}, pairrm.backbone_config(checkpoint, Options())
    )
    expected = reference.run(rows)["logit"]
    assert np.abs(logits(session(checkpoint), rows) - expected).max() < TOLERANCE * expected.std()


def test_float16_logits_are_within_a_hundredth_of_their_deviation(tmp_path: Path) -> None:
    """11 bits in every matrix product, the bound of all families (test_parity.py)."""
    checkpoint, examples = opened(tmp_path / "checkpoint"), default_conversations()[:60]
    found = {}
    for precision in ("fp32", "fp16"):
        bundle = open_bundle(export_checkpoint(checkpoint, tmp_path / precision, precision=precision))
        prompts = encode_questions(
            bundle.manifest.prompt, bundle.tokenizer(), examples, questions_of(examples, pairwise=True)
        )
        asked = [np.asarray(prompt.ids, np.int64) for prompt in prompts if isinstance(prompt, Prompt)]
        found[precision] = run_rows(open_engine(bundle, threads=1), asked, bundle.manifest.pad_token_id)["logit"]
    assert len(found["fp32"]) > 200
    assert np.abs(found["fp16"] - found["fp32"]).max() <= 1e-2 * found["fp32"].std()


def test_both_layouts_are_the_same_graph(tmp_path: Path) -> None:
    rows = [row(50, seed) for seed in range(4)]
    first, second = (logits(session(opened(tmp_path / layout, layout=layout)), rows) for layout in LAYOUTS)
    assert np.array_equal(first, second)


def test_a_row_without_all_prefixes_or_with_a_broken_mask_is_nan_and_harms_no_other(tmp_path: Path) -> None:
    graph = session(opened(tmp_path))
    good = row(30, 1)
    rows = [good, *(np.where(good == prefix, 7, good) for prefix in PREFIX_IDS)]
    ids, mask = pad_rows([*rows, good, good, good], 0)
    mask[4] = 0  # no token
    mask[5, 0] = 0  # padded on the left
    place = int(np.flatnonzero(good == PREFIX_IDS[2])[0])
    mask[6, place:] = 0  # its last prefix is padding
    (batch,) = graph.run(["logit"], {"input_ids": ids, "attention_mask": mask})
    (alone,) = logits(graph, [good])
    assert batch[0] == pytest.approx(alone, abs=1e-5)
    assert np.isnan(batch[1:]).all()


def test_a_row_does_not_depend_on_what_it_is_batched_with(tmp_path: Path) -> None:
    graph = session(opened(tmp_path))
    rows = [row(length, 0) for length in (5, 40, 400)]
    together = logits(graph, rows)
    alone = np.concatenate([logits(graph, [one]) for one in rows])
    assert np.abs(together - alone).max() < TOLERANCE * alone.std()


def test_the_layout_decides_how_rows_are_budgeted(tmp_path: Path) -> None:
    hf = pairrm.plan(opened(tmp_path / "hf"), Options())
    blender = pairrm.plan(opened(tmp_path / "blender", layout="PairRM", source_maxlength=600), Options())
    assert hf.prompt == SegmentsPrompt(replace=(), budget="row", candidate_prefix=None)
    assert blender.prompt == SegmentsPrompt(source_max_length=600)
    for plan in (hf, blender):
        assert plan.pooling == "PREFIX-TOKENS"
        assert plan.parameters == {"prefix_ids": list(PREFIX_IDS), "n_tasks": 1}
        assert plan.pad_token_id == 0


def test_the_tokenizer_of_spm_model_and_of_tokenizer_json_agree(tmp_path: Path) -> None:
    hf = pairrm.plan(opened(tmp_path / "hf"), Options())
    blender = pairrm.plan(opened(tmp_path / "blender", layout="PairRM"), Options())
    first, second = (Tokenizer.from_str(plan.tokenizer_json) for plan in (hf, blender))
    for text in ("<|source|>ﬁnd the ½ cup…", "<|candidate|> a\n\nb <|candidate1|>", "[SEP] ［SEP］"):
        assert first.encode(text).ids == second.encode(text).ids


def test_auto_recognises_both_layouts(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        assert recognise(opened(tmp_path / layout, layout=layout)).NAME == pairrm.NAME


def test_limits_of_the_user_are_split_as_the_references_are(tmp_path: Path) -> None:
    plan = pairrm.plan(opened(tmp_path), Options(max_length=1024, truncation_side="left"))
    assert isinstance(plan.prompt, SegmentsPrompt)
    assert (plan.prompt.source_max_length, plan.prompt.candidate_max_length) == (612, 206)
    assert plan.prompt.max_length == 1024
    assert plan.prompt.truncation_side == "left"
    with pytest.raises(CheckpointError, match="leaves PairRM's candidates no room"):
        pairrm.plan(open_checkpoint(tmp_path), Options(max_length=10))


def test_the_backbone_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = opened(tmp_path / "ranker", layout="PairRM")
    expected = pairrm.plan(checkpoint, Options()).tokenizer_json
    shutil.move(tmp_path / "ranker" / "microsoft" / "deberta-v3-large", tmp_path / "backbone")
    named = pairrm.plan(checkpoint, Options(backbone=str(tmp_path / "backbone")))
    assert named.tokenizer_json == expected

    asked = []

    def locate(name: str, revision: str | None = None, files: str = "weights") -> hub.Located:
        asked.append((name, files))
        return hub.Located(tmp_path / "backbone", name, "0" * 40)

    monkeypatch.setattr(hub, "locate", locate)
    assert pairrm.plan(checkpoint, Options()).tokenizer_json == expected
    assert asked == [("microsoft/deberta-v3-large", "metadata")]


def test_a_backbone_out_of_reach_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = opened(tmp_path, layout="PairRM")
    shutil.rmtree(tmp_path / "microsoft")

    def locate(name: str, revision: str | None = None, files: str = "weights") -> hub.Located:
        raise CheckpointError("cannot reach the hub")

    monkeypatch.setattr(hub, "locate", locate)
    with pytest.raises(CheckpointError) as refused:
        pairrm.plan(checkpoint, Options())
    assert "needs config.json and tokenizer of its backbone microsoft/deberta-v3-large" in str(refused.value)
    assert "name another place with --backbone" in str(refused.value)
    assert "\n" not in str(refused.value)


def changed_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    ("layout", "file", "changes", "message"),
    [
        ("PairRM", "config.json", {"ranker_type": "summareranker"}, "is a summareranker on deberta"),
        ("PairRM", "config.json", {"model_type": "roberta"}, "is a pairranker on roberta"),
        ("PairRM", "config.json", {"model_name": ""}, "names no backbone"),
        ("PairRM", "config.json", {"n_tasks": "one"}, "n_tasks 'one', a positive integer is needed"),
        ("PairRM", "config.json", {"n_tasks": 2}, "head_layer.4.weight"),
        ("PairRM", "added_tokens.json", {"<|candidate1|>": 1050}, "gives <|candidate1|> the id 1050"),
        ("PairRM", "microsoft/deberta-v3-large/config.json", {"hidden_size": 32}, "does not fit"),
        ("PairRM", "microsoft/deberta-v3-large/config.json", {"conv_kernel_size": 3}, "conv_kernel_size"),
        ("PairRM-hf", "config.json", {"source_prefix_id": 4}, "config.json gives <|source|> the id 4"),
    ],
)
def test_a_checkpoint_that_does_not_fit_together_is_refused_in_one_line(
    tmp_path: Path, layout: Any, file: str, changes: dict[str, Any], message: str
) -> None:
    checkpoints.pairrm(tmp_path, layout=layout)
    changed_json(tmp_path / file, **changes)
    with pytest.raises(CheckpointError) as refused:
        session(open_checkpoint(tmp_path))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_options_of_chat_families_are_refused(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path)
    with pytest.raises(CheckpointError, match="--chat-template means nothing to PairRM"):
        pairrm.plan(checkpoint, Options(chat_template="{{ messages }}"))
    with pytest.raises(CheckpointError, match="--score-label means nothing to PairRM"):
        pairrm.plan(checkpoint, Options(score_label=1))


def test_another_familys_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no PairRM head"):
        pairrm.plan(open_checkpoint(checkpoints.scalar(tmp_path)), Options())
