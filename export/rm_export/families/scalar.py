"""Any *ForSequenceClassification reward model: one linear `score` layer on a decoder's last token. semantics.md 8.

DeBERTa's class pools otherwise: scalar_encoder.py.
"""

from __future__ import annotations

from rm_export.checkpoint import Checkpoint
from rm_export.errors import CheckpointError
from rm_export.families import scalar_encoder
from rm_export.families.labels import Labels
from rm_export.families.plan import Plan, is_buffer, pad_or_eos
from rm_export.graph import positions
from rm_export.graph.decoder import Decoder
from rm_export.graph.decoder_config import DecoderConfig
from rm_export.graph.module import Float32Linear, Module, Op, Value
from rm_export.graph.rows import Rows
from rm_export.options import Options
from rm_export.tokenizer import chat_prompt, read_tokenizer

NAME = "scalar"
HUB_ID = None


class SequenceClassifier(Module):
    """Decoder and score layer, read at LAST-NONPAD, or at MASK-SUM where the checkpoint has no pad token."""

    def __init__(
        self,
        config: DecoderConfig,
        max_length: int,
        labels: Labels,
        pad_token_id: int | None,
        bias: bool,
    ) -> None:
        super().__init__()
        self.labels = labels
        self.pad_token_id = pad_token_id
        self.model = Decoder(config, max_length)
        self.score = Float32Linear(config.hidden_size, labels.count, bias)

    def forward(self, op: Op, rows: Rows) -> dict[str, Value]:
        """Output `score` [batch]; with several labels also `logits` [batch, labels]."""
        lengths, valid = positions.row_lengths(op, rows.attention_mask)
        if self.pad_token_id is None:
            last = positions.mask_sum(op, lengths)
        else:
            last = positions.last_nonpad(op, rows.input_ids, lengths, self.pad_token_id)
        hidden = op.Squeeze(self.model(op, rows, op.Unsqueeze(last, [1])), [1])
        return self.labels.values(op, self.score(op, hidden), valid)


def recognises(checkpoint: Checkpoint) -> bool:
    """Architecture and the score layer; GRM siblings may carry vhead_* keys and are still this (semantics 3.1)."""
    if scalar_encoder.recognises(checkpoint):
        return True
    return checkpoint.architecture.endswith("ForSequenceClassification") and "score.weight" in checkpoint.tensors


def plan(checkpoint: Checkpoint, options: Options) -> Plan:
    """Reference: transformers' GenericForSequenceClassification; prompt as apply_chat_template(tokenize=True)."""
    if scalar_encoder.recognises(checkpoint):
        return scalar_encoder.plan(checkpoint, options)
    if "score.weight" not in checkpoint.tensors:
        raise CheckpointError(f"{checkpoint.id} holds no score.weight, so it is no sequence classifier")
    config = DecoderConfig.from_hf(checkpoint.config)
    tokenizer = read_tokenizer(checkpoint.folder)
    prompt = chat_prompt(tokenizer, options, where=checkpoint.id, max_length=min(4096, config.max_position_embeddings))
    pad_token_id = checkpoint.config.get("pad_token_id")
    labels = Labels.of_head(checkpoint, "score.weight", options)
    return Plan(
        module=SequenceClassifier(
            config,
            prompt.max_length,
            labels,
            pad_token_id,
            bias="score.bias" in checkpoint.tensors,
        ),
        outputs=labels.outputs,
        tensors=checkpoint.tensors,
        unused=is_buffer,
        tokenizer_json=tokenizer.json,
        pooling="MASK-SUM" if pad_token_id is None else "LAST-NONPAD",
        pad_token_id=pad_or_eos(checkpoint),
        prompt=prompt,
        architecture=config.summary(),
        parameters=labels.parameters,
    )
