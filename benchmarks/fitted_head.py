"""Another family on the demo's trained backbone: a head fitted by least squares to the demo's own scores."""

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
    shutil.copytree(checkpoint_path(), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = load_file(folder / "model.safetensors")
    backbone = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    head = np.zeros((1, config["hidden_size"]), np.float32)
    save_file(backbone | {"score.weight": head}, folder / "model.safetensors")
    head[0] = _fit(last_states(folder, ask(folder, examples).rows), scores)
    save_file(backbone | {"score.weight": head}, folder / "model.safetensors")
    return folder


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
