"""What a family decides about one checkpoint: the module to write, the prompt, and what the manifest must tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from onnxscript import nn

from rm_export.checkpoint import Checkpoint
from rm_export.options import Options
from rm_export.tensors import StreamedTensor
from rm_runtime.prompt_spec import PromptSpec


@dataclass(frozen=True)
class Plan:
    """One checkpoint, ready to be written.

    module: root of the graph; forward(op, rows) -> outputs by name, batch first, float32.
    outputs: name -> shape, in order. tensors: what the module's weights are read from. unused: names of checkpoint
    tensors that the score does not need. tokenizer_json: text of the bundle's tokenizer.json. pooling, pad_token_id,
    prompt, parameters, architecture: as in the manifest. causal: no token sees those after it, so that rows can share
    what they have in common at their beginning.
    """

    module: nn.Module
    outputs: Mapping[str, tuple[str | int, ...]]
    tensors: Mapping[str, StreamedTensor]
    unused: Callable[[str], bool]
    tokenizer_json: str
    pooling: str
    pad_token_id: int
    prompt: PromptSpec
    architecture: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    causal: bool = True


class Family(Protocol):
    """One kind of reward model. A family is a module of this package with these names."""

    NAME: str
    HUB_ID: str | None

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether `rm-export auto` should take this family, by architectures and tensor names."""

    def plan(self, checkpoint: Checkpoint, options: Options) -> Plan:
        """Decide everything. Raises CheckpointError if the checkpoint is not of this family."""


def is_buffer(name: str) -> bool:
    """Stored buffers of old transformers versions, which hold no weights."""
    return name.endswith((".rotary_emb.inv_freq", ".position_ids", ".masked_bias"))


def pad_or_eos(checkpoint: Checkpoint) -> int:
    """The id to pad with: config.json's pad_token_id, else its (first) eos_token_id, else 0.

    Only for families whose pooling goes by the attention mask, or where the config has a pad id.
    """
    for key in ("pad_token_id", "eos_token_id"):
        value = checkpoint.config.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, int) and value >= 0:
            return value
    return 0
