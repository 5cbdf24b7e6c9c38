"""Tiny checkpoints in the layout of the hub: config.json, safetensors and tokenizer files, without torch.

Weights depend on (seed, tensor name, shape) only. They are spread out on purpose: a wrong token, position,
mask or transposition moves the scores by tenths, not by rounding.
"""

from checkpoints.armo import armorm
from checkpoints.dpa import dpa_rm
from checkpoints.pair_preference import pair_pm
from checkpoints.pair_ranker import pairrm
from checkpoints.scalar_encoder import scalar_encoder
from checkpoints.scalar_score import scalar
from checkpoints.value_head import grm

__all__ = ["armorm", "dpa_rm", "grm", "pair_pm", "pairrm", "scalar", "scalar_encoder"]
