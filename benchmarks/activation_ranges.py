"""How much wider a decoder's activations are at the first token and in single channels than typically."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from massive_token import Typical

READERS = {
    "q_proj": "attention input",
    "o_proj": "attention output",
    "gate_proj": "MLP input",
    "down_proj": "down input",
}
"""Each stands for the quantised activation that it reads."""


@dataclass(frozen=True)
class Range:
    """Of one activation: median of |x| over ordinary tokens; how many medians the first token and other tokens reach.

    channel: the widest channel's largest |x| at ordinary tokens over the median channel's.
    """

    median: float
    first: float
    others: float
    channel: float


def llama(checkpoint: Path) -> Any:
    """The checkpoint's backbone as transformers' LlamaModel in float32."""
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaModel

    model = LlamaModel(LlamaConfig(**json.loads((checkpoint / "config.json").read_text()))).eval().float()
    tensors = {name: tensor.float() for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    return model


def activation_ranges(checkpoint: Path, rows: Sequence[NDArray[np.int64]]) -> dict[str, Range]:
    """Every quantised activation, "residual" after each layer too: name -> range. rows: token ids of whole prompts."""
    import torch

    model = llama(checkpoint)
    seen: dict[str, list[NDArray[np.float32]]] = defaultdict(list)

    def watch(name: str) -> Any:
        return lambda _, inputs: seen[name].append(inputs[0][0].abs().numpy())

    for layer, block in enumerate(model.layers):
        for name, module in block.named_modules():
            kind = READERS.get(name.rpartition(".")[2])
            if kind is not None:
                module.register_forward_pre_hook(watch(f"layer {layer} {kind}"))
        (model.layers[layer + 1] if layer + 1 < len(model.layers) else model.norm).register_forward_pre_hook(
            watch(f"layer {layer} residual")
        )
    with torch.no_grad():
        for row in rows:
            model(torch.tensor(row)[None], use_cache=False)
    return {name: _range(pieces) for name, pieces in seen.items()}


def typical(ranges: dict[str, Range]) -> Typical:
    """The medians that a massive token is measured in; the residual stream's after the first layer."""
    layers = sum(name.endswith("down input") for name in ranges)
    return Typical(
        residual=ranges["layer 0 residual"].median,
        down=tuple(ranges[f"layer {layer} down input"].median for layer in range(layers)),
    )


def _range(pieces: Sequence[NDArray[np.float32]]) -> Range:
    first, others = np.stack([piece[0] for piece in pieces]), np.concatenate([piece[1:] for piece in pieces])
    median, channels = float(np.median(others)), others.max(axis=0)
    return Range(
        median,
        float(first.max()) / median,
        float(others.max()) / median,
        float(channels.max() / np.median(channels)),
    )
