"""Any *ForSequenceClassification reward model: one linear `score` layer on the last token. semantics.md 8."""

from __future__ import annotations

from rm_export.checkpoint import Checkpoint
from rm_export.errors import CheckpointError
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
        num_labels: int,
        pad_token_id: int | None,
        score_label: int,
        bias: bool,
    ) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.pad_token_id = pad_token_id
        self.score_label = score_label
        self.model = Decoder(config, max_length)
        self.score = Float32Linear(config.hidden_size, num_labels, bias)

    def forward(self, op: Op, rows: Rows) -> dict[str, Value]:
        """Output `score` [batch]; with several labels also `logits` [batch, num_labels]."""
        lengths, valid = positions.row_lengths(op, rows.attention_mask)
        if self.pad_token_id is None:
            last = positions.mask_sum(op, lengths)
        else:
            last = positions.last_nonpad(op, rows.input_ids, lengths, self.pad_token_id)
        hidden = op.Squeeze(self.model(op, rows, op.Unsqueeze(last, [1])), [1])
        logits = self.score(op, hidden)
        score = op.Gather(logits, self.score_label, axis=1)
        outputs = {"score": positions.nan_unless(op, valid, score, 1)}
        if self.num_labels > 1:
            outputs["logits"] = positions.nan_unless(op, valid, logits, 2)
        return outputs


def recognises(checkpoint: Checkpoint) -> bool:
    """Architecture and the score layer; GRM siblings may carry vhead_* keys and are still this (semantics 3.1)."""
    return checkpoint.architecture.endswith("ForSequenceClassification") and "score.weight" in checkpoint.tensors


def plan(checkpoint: Checkpoint, options: Options) -> Plan:
    """Reference: transformers' GenericForSequenceClassification; prompt as apply_chat_template(tokenize=True)."""
    if "score.weight" not in checkpoint.tensors:
        raise CheckpointError(f"{checkpoint.id} holds no score.weight, so it is no sequence classifier")
    config = DecoderConfig.from_hf(checkpoint.config)
    tokenizer = read_tokenizer(checkpoint.folder)
    prompt = chat_prompt(tokenizer, options, where=checkpoint.id, max_length=min(4096, config.max_position_embeddings))
    pad_token_id = checkpoint.config.get("pad_token_id")
    num_labels = checkpoint.tensors["score.weight"].dims[0]
    if not 0 <= options.score_label < num_labels:
        raise CheckpointError(f"--score-label {options.score_label} is outside the head's {num_labels} labels")
    outputs: dict[str, tuple[str | int, ...]] = {"score": ("batch",)}
    if num_labels > 1:
        outputs["logits"] = ("batch", num_labels)
    return Plan(
        module=SequenceClassifier(
            config,
            prompt.max_length,
            num_labels,
            pad_token_id,
            options.score_label,
            bias="score.bias" in checkpoint.tensors,
        ),
        outputs=outputs,
        tensors=checkpoint.tensors,
        unused=is_buffer,
        tokenizer_json=tokenizer.json,
        pooling="MASK-SUM" if pad_token_id is None else "LAST-NONPAD",
        pad_token_id=pad_or_eos(checkpoint),
        prompt=prompt,
        architecture=config.summary(),
        parameters={"score_label": options.score_label} if num_labels > 1 else {},
    )
