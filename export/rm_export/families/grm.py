"""GRM: a value head (MLP or linear) on the last token of a causal LM. semantics.md 3."""

from __future__ import annotations

import re

from rm_export.checkpoint import Checkpoint
from rm_export.errors import CheckpointError
from rm_export.families.plan import Plan, is_buffer, pad_or_eos
from rm_export.graph import positions
from rm_export.graph.decoder import Decoder
from rm_export.graph.decoder_config import DecoderConfig
from rm_export.graph.heads import ValueHead
from rm_export.graph.module import Module, Op, Value
from rm_export.graph.rows import Rows
from rm_export.options import Options
from rm_export.tokenizer import chat_prompt, read_tokenizer

NAME = "grm"
HUB_ID = "Ray2333/GRM-llama3.2-3B-sftreg"

_HEAD = "v_head.summary."


class GRM(Module):
    """Decoder and value head, read at MASK-SUM."""

    def __init__(self, config: DecoderConfig, max_length: int, head: ValueHead) -> None:
        super().__init__()
        self.model = Decoder(config, max_length)
        self.v_head = head

    def forward(self, op: Op, rows: Rows) -> dict[str, Value]:
        """Output `score` [batch]."""
        lengths, valid = positions.row_lengths(op, rows.attention_mask)
        last = op.Unsqueeze(positions.mask_sum(op, lengths), [1])
        hidden = op.Squeeze(self.model(op, rows, last), [1])
        return {"score": positions.nan_unless(op, valid, self.v_head(op, hidden), 1)}


def recognises(checkpoint: Checkpoint) -> bool:
    """By the value head's tensors: sibling checkpoints carry vhead_* keys in config.json but no such head."""
    return any(name.startswith(_HEAD) for name in checkpoint.tensors)


def plan(checkpoint: Checkpoint, options: Options) -> Plan:
    """Reference: template text tokenised with the tokenizer's own specials, hence two BOS (semantics 0.2).

    The truncation limit is not documented for inference; 4,096 on the right is the safe default.
    """
    if not recognises(checkpoint):
        raise CheckpointError(
            f"{checkpoint.id} holds no {_HEAD}* tensor, so it is no GRM value head; try `rm-export auto`"
        )
    config = DecoderConfig.from_hf(checkpoint.config)
    tokenizer = read_tokenizer(checkpoint.folder)
    prompt = chat_prompt(
        tokenizer,
        options,
        where=checkpoint.id,
        max_length=min(4096, config.max_position_embeddings),
        add_special_tokens=True,
    )
    return Plan(
        module=GRM(config, prompt.max_length, _value_head(checkpoint, config)),
        outputs={"score": ("batch",)},
        tensors=checkpoint.tensors,
        unused=lambda name: is_buffer(name) or name == "lm_head.weight",
        tokenizer_json=tokenizer.json,
        pooling="MASK-SUM",
        pad_token_id=pad_or_eos(checkpoint),
        prompt=prompt,
        architecture=config.summary(),
    )


def _value_head(checkpoint: Checkpoint, config: DecoderConfig) -> ValueHead:
    """The head's form is read off its tensors; config.json's vhead_* keys only ever repeat it."""
    if f"{_HEAD}weight" in checkpoint.tensors:
        return ValueHead(config.hidden_size, "linear", 0, 0)
    indices = sorted(
        int(found[1]) for name in checkpoint.tensors if (found := re.fullmatch(r"v_head\.summary\.(\d+)\.weight", name))
    )
    if not indices or indices != list(range(0, 2 * len(indices), 2)):
        raise CheckpointError(f"{checkpoint.id}: value head layers {indices} are not 0, 2, 4, ...")
    first = checkpoint.tensors[f"{_HEAD}0.weight"]
    return ValueHead(config.hidden_size, "mlp", len(indices) - 1, first.dims[0])
