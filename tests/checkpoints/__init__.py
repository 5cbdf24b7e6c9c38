"""Tiny checkpoints in the layout of the hub: config.json, safetensors and tokenizer files, without torch.

Weights depend on (seed, tensor name, shape) only. They are spread out on purpose: a wrong token, position,
mask or transposition moves the scores by tenths, not by rounding.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from checkpoints.armo import armorm
from checkpoints.dpa import dpa_rm
from checkpoints.pair_preference import pair_pm
from checkpoints.pair_ranker import pairrm
from checkpoints.scalar_encoder import scalar_encoder
from checkpoints.scalar_score import scalar
from checkpoints.value_head import grm

__all__ = ["CAUSAL", "armorm", "dpa_rm", "grm", "pair_pm", "pairrm", "scalar", "scalar_encoder"]

CAUSAL: dict[str, Callable[[Path], Path]] = {
    "armorm": armorm,
    "grm": grm,
    "pair-pm": pair_pm,
    "dpa-rm": dpa_rm,
    "scalar-qwen2": partial(scalar, backbone="qwen2"),
    "scalar-qwen3": partial(scalar, backbone="qwen3"),
    "scalar-gemma": partial(scalar, backbone="gemma"),
    "scalar-gemma2": partial(scalar, backbone="gemma2", sliding_window=24),
    "scalar-mistral": partial(scalar, backbone="mistral", sliding_window=24),
}
"""Every causal family, and the backbones that differ from llama; windows are shorter than the tests' rows."""
