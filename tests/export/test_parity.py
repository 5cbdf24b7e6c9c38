"""Every family and backbone: the bundle's outputs are those of the float32 torch reference (HF's own classes).

Tolerances, relative to the standard deviation of the output over the conversations. float32 1e-4 for every output:
two correct float32 programs differ by rounding only. float16 1e-2 for the score: 11 bits in every matrix product.
ArmoRM's gating passes through a sharp softmax and has 19 times as many values to be worst at: 5e-2 in float16.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import checkpoints
from conversations import conversations, preference_groups
from rm_export.checkpoint import Checkpoint, open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_export.reference import open_reference
from rm_runtime.batching import run_rows
from rm_runtime.bundle import Bundle, open_bundle
from rm_runtime.engines import open_engine
from rm_runtime.prompt_spec import ChatPrompt, PairChatPrompt
from rm_runtime.prompts import ChatPrompter, PairChatPrompter, Prompt

TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2}
EXPLANATION_TOLERANCE = {"fp32": 1e-4, "fp16": 5e-2}
NO_SYSTEM = ("gemma", "gemma2", "mistral")


@dataclass(frozen=True)
class Case:
    """A checkpoint to compare on."""

    family: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.family, *(f"{value}" for value in self.options.values())])


CASES = [
    Case("armorm"),
    Case("armorm", {"backbone": "gemma2"}),
    Case("armorm", {"dtype": "float32", "shards": 3}),
    Case("grm"),
    Case("grm", {"vhead_num_layers": 2}),
    Case("grm", {"vhead_num_layers": 3}),
    Case("grm", {"vhead_layer_type": "linear"}),
    Case("grm", {"backbone": "gemma"}),
    Case("grm", {"backbone": "gemma2", "tie_word_embeddings": False}),
    Case("pair-pm"),
    Case("pair-pm", {"header": "conditional"}),
    Case("pair-pm", {"backbone": "gemma2"}),
    Case("dpa-rm"),
    Case("dpa-rm", {"bias": True}),
    *(Case("scalar", {"backbone": name}) for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")),
    Case("scalar", {"backbone": "llama", "num_labels": 5}),
    Case("scalar", {"backbone": "llama", "attention_bias": True, "mlp_bias": True}),
    Case("scalar", {"backbone": "llama", "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    Case("scalar", {"backbone": "mistral", "sliding_window": None}),
]


@dataclass(frozen=True)
class Compared:
    """One checkpoint with its rows of ids and what the reference makes of them."""

    case: Case
    checkpoint: Checkpoint
    rows: list[NDArray[np.int64]]
    reference: dict[str, NDArray[np.float32]]
    folder: Path


def rows_of(bundle: Bundle, case: Case) -> list[NDArray[np.int64]]:
    """The ids of 220 conversations, as the runtime makes them."""
    spec = bundle.manifest.prompt
    prompts: list[Any]
    if isinstance(spec, PairChatPrompt):
        groups = preference_groups(220, responses=2)
        prompts = PairChatPrompter(spec, bundle.tokenizer()).encode([(m, a, b) for m, (a, b) in groups])
    else:
        assert isinstance(spec, ChatPrompt)
        system = case.options.get("backbone") not in NO_SYSTEM and case.family != "dpa-rm"
        prompts = ChatPrompter(spec, bundle.tokenizer()).encode(conversations(220, system=system))
    assert all(isinstance(prompt, Prompt) for prompt in prompts)
    return [np.asarray(prompt.ids, np.int64) for prompt in prompts]


@pytest.fixture(scope="module", params=CASES, ids=str)
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    case: Case = request.param
    folder = tmp_path_factory.mktemp("parity")
    made = getattr(checkpoints, case.family.replace("-", "_"))(folder / "checkpoint", **case.options)
    checkpoint = open_checkpoint(made)
    bundle = open_bundle(export_checkpoint(checkpoint, folder / "fp32"))
    assert bundle.manifest.family == case.family  # found by `auto`
    rows = rows_of(bundle, case)
    reference = open_reference(checkpoint, case.family, bundle.manifest.parameters).run(rows, threads=1)
    return Compared(case, checkpoint, rows, reference, folder)


def outputs(compared: Compared, precision: str) -> dict[str, NDArray[np.float32]]:
    folder = compared.folder / precision
    if not folder.exists():
        export_checkpoint(compared.checkpoint, folder, family=compared.case.family, precision=precision)
    bundle = open_bundle(folder)
    return run_rows(open_engine(bundle, threads=1), compared.rows, bundle.manifest.pad_token_id)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_every_output_is_the_references(compared: Compared, precision: str) -> None:
    for name, values in outputs(compared, precision).items():
        expected = compared.reference[name]
        assert np.array_equal(np.isnan(values), np.isnan(expected)), name
        scorable = ~np.isnan(expected).reshape(len(expected), -1).any(axis=1)
        spread = expected[scorable].std(axis=0)
        error = np.abs(values[scorable] - expected[scorable]).max(axis=0)
        assert scorable.mean() > 0.9, name
        assert (spread > 0.01).all(), f"{name} hardly varies: such a test could not fail"
        tolerance = (TOLERANCE if name == "score" else EXPLANATION_TOLERANCE)[precision]
        assert (error <= tolerance * spread).all(), f"{name}: {error / spread}"


def test_no_pair_of_conversations_is_ranked_differently(compared: Compared) -> None:
    scores, expected = outputs(compared, "fp32")["score"], compared.reference["score"]
    pairs = [(i, j) for i, j in combinations(np.flatnonzero(~np.isnan(expected)), 2) if expected[i] != expected[j]]
    assert len(pairs) > 10_000
    assert sum((scores[i] > scores[j]) != (expected[i] > expected[j]) for i, j in pairs) == 0
