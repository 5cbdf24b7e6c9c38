"""Other families on the demo's trained backbone: heads fitted by least squares to the demo's own scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors asks for
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from asked import ask
from rm_calibration.conversations import Example
from rm_export.demo import checkpoint_path

RIDGE = 1e-2
"""Added to the states' covariance, in units of its mean variance: best held-out correlation of 0.001 to 1."""


def scalar(folder: Path, examples: Sequence[Example], scores: NDArray[np.float64]) -> Path:
    """One score [1, hidden] on the last token. scores: the demo's of every answer, example by example."""
    _copy(folder, "LlamaForSequenceClassification", {"score.weight": np.zeros((1, 128), np.float32)})
    states = last_states(folder, ask(folder, examples).rows)
    return _with_head(folder, "score.weight", {0: _fit(states, scores)})


def pair_pm(folder: Path, examples: Sequence[Example], margins: NDArray[np.float64]) -> Path:
    """Logits of "A" and "B" after two answers. margins: the demo's score of A minus that of B, question by question."""
    vocabulary = json.loads((checkpoint_path() / "config.json").read_text())["vocab_size"]
    _copy(folder, "LlamaForCausalLM", {"lm_head.weight": np.zeros((vocabulary, 128), np.float32)})
    states = last_states(folder, ask(folder, examples).rows)
    ids = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    direction = _fit(states, margins) / 2
    return _with_head(folder, "lm_head.weight", {ids["A"]: direction, ids["B"]: -direction})


def last_states(checkpoint: Path, rows: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """The normed hidden state of each row's last token, [rows, hidden], by transformers."""
    import torch

    from activation_ranges import llama

    model = llama(checkpoint)
    with torch.no_grad():
        states = [model(torch.tensor(row)[None], use_cache=False).last_hidden_state[0, -1].numpy() for row in rows]
    return np.stack(states).astype(np.float64)


def _fit(states: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """The direction [hidden] on which centred states are closest to the centred wanted numbers."""
    centred = states - states.mean(axis=0)
    covariance = centred.T @ centred
    ridge = RIDGE * np.trace(covariance) / len(covariance)
    direction: NDArray[np.float64] = np.linalg.solve(
        covariance + ridge * np.eye(len(covariance)), centred.T @ (wanted - wanted.mean())
    )
    return direction


def _copy(folder: Path, architecture: str, head: dict[str, NDArray[np.float32]]) -> None:
    shutil.copytree(checkpoint_path(), folder)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": [architecture], "num_labels": 1}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k.startswith("model.")} | head, folder / "model.safetensors")


def _with_head(folder: Path, name: str, rows: dict[int, NDArray[np.float64]]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    for row, direction in rows.items():
        tensors[name][row] = direction
    save_file(tensors, folder / "model.safetensors")
    return folder
