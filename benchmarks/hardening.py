"""Checkpoints made hard to quantise, as large models are: the same function in float, with outlier channels.

Channels are scaled by powers of two where a linear reader can take the factor back, so the copy is exact to the bit:
a norm's weight against what reads it, up_proj against down_proj, a value head against its output projection.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors asks for
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from massive_token import Tensors, Typical, add_massive_token

OUTLIERS = (32.0, 64.0, 128.0)
"""Factors of the outlier channels."""

MASSIVE = 1000.0
"""The first token's activations over the median, in the residual stream and at the MLPs that write and remove them."""

HEADS = {
    "LlamaForRewardModelWithGating": ("regression_layer.weight", "gating.layers.0.weight"),
    "LlamaForSequenceClassification": ("score.weight",),
    "LlamaForCausalLM": ("lm_head.weight",),
}
"""By architecture, the weights that read the final norm."""


def harden_decoder(source: Path, folder: Path, typical: Typical | None = None) -> Path:
    """A copy with outlier channels in every norm and MLP and, where `typical` is given, a massive BOS token.

    typical: what the medians of `source` are; None for prompts that do not begin with BOS.
    """
    shutil.copytree(source, folder)
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    carriers: Sequence[int] = ()
    if typical is not None:
        massive = add_massive_token(config, tensors, HEADS[config["architectures"][0]], typical, MASSIVE)
        config, tensors, carriers = massive.config, massive.tensors, massive.channels
    rng = np.random.default_rng(0)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for norm, readers in {
            "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
        }.items():
            others = rng.permutation(np.setdiff1d(np.arange(config["hidden_size"]), carriers))
            channels = np.array([*carriers, *others])[: len(OUTLIERS)]
            _exchange(tensors, f"{prefix}{norm}.weight", [f"{prefix}{name}.weight" for name in readers], channels)
        channels = rng.choice(config["intermediate_size"], size=len(OUTLIERS), replace=False)
        _exchange(tensors, f"{prefix}mlp.up_proj.weight", [f"{prefix}mlp.down_proj.weight"], channels)
    return _write(folder, config, tensors)


def harden_deberta(source: Path, folder: Path) -> Path:
    """A copy with outlier channels in every value projection, taken back by the attention's output projection.

    Its LayerNorms also feed the residual stream, and GELU is not linear, so nothing else can be exchanged.
    """
    shutil.copytree(source, folder)
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    rng = np.random.default_rng(0)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"pretrained_model.encoder.layer.{layer}.attention."
        channels = rng.choice(config["hidden_size"], size=len(OUTLIERS), replace=False)
        value, bias = f"{prefix}self.value_proj.weight", f"{prefix}self.value_proj.bias"
        _exchange(tensors, value, [f"{prefix}output.dense.weight"], channels)
        tensors[bias] = _scaled(tensors[bias], channels, axis=0, factors=OUTLIERS)
    return _write(folder, config, tensors)


def _exchange(tensors: Tensors, writer: str, readers: Sequence[str], channels: NDArray[np.intp]) -> None:
    """Output channels of `writer` times the outliers' factors, the columns of `readers` divided by them."""
    tensors[writer] = _scaled(tensors[writer], channels, axis=0, factors=OUTLIERS)
    for reader in readers:
        tensors[reader] = _scaled(tensors[reader], channels, axis=1, factors=[1 / factor for factor in OUTLIERS])


def _scaled(tensor: NDArray[Any], channels: NDArray[np.intp], axis: int, factors: Sequence[float]) -> NDArray[Any]:
    shape = [1] * tensor.ndim
    shape[axis] = -1
    along = np.ones(tensor.shape[axis], np.float32)
    along[channels] = factors
    return (tensor.astype(np.float32) * along.reshape(shape)).astype(tensor.dtype)


def _write(folder: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder
