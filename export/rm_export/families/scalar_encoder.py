"""DebertaV2ForSequenceClassification reward models, e.g. OpenAssistant/reward-model-deberta-v3-large-v2.

They read a sentence pair, [CLS] question [SEP] answer [SEP], and score it at [CLS]: a part of the family `scalar`.
"""

from __future__ import annotations

from rm_export.checkpoint import Checkpoint
from rm_export.errors import CheckpointError
from rm_export.families.labels import Labels
from rm_export.families.plan import Plan, is_buffer, pad_or_eos
from rm_export.graph import positions
from rm_export.graph.deberta import Deberta
from rm_export.graph.deberta_config import DebertaConfig
from rm_export.graph.heads import ContextPooler
from rm_export.graph.module import Float32Linear, Module, Op, Value
from rm_export.graph.rows import Rows
from rm_export.options import Options
from rm_export.tokenizer import chat_prompt, read_tokenizer

HEAD = "classifier.weight"
TEMPLATE = (
    "{{ messages[:-1] | map(attribute='content') | join('\\n') }}"
    "{% if messages[-1].content %}{{ sep_token }}{{ messages[-1].content }}{% endif %}"
)
"""The tokenizer adds the outer [CLS] and [SEP], so this is tokenizer(question, answer), which takes an empty answer for
none. Source: the model card; it has one question, that earlier turns stand before it, a line each, is our choice."""

_BACKBONE = "deberta"


class PairClassifier(Module):
    """Encoder, pooler and classifier, read at FIRST-TOKEN."""

    def __init__(self, config: DebertaConfig, labels: Labels) -> None:
        super().__init__()
        self.labels = labels
        self.deberta = Deberta(config, _BACKBONE)
        self.pooler = ContextPooler(config.hidden_size)
        self.classifier = Float32Linear(config.hidden_size, labels.count, bias=True)

    def forward(self, op: Op, rows: Rows) -> dict[str, Value]:
        """Output `score` [batch]; with several labels also `logits` [batch, labels]."""
        lengths, valid = positions.row_lengths(op, rows.attention_mask)
        first = op.Unsqueeze(op.Mul(lengths, 0), [1])
        hidden = op.Squeeze(self.deberta(op, rows.input_ids, rows.attention_mask, first), [1])
        return self.labels.values(op, self.classifier(op, self.pooler(op, hidden)), valid)


def recognises(checkpoint: Checkpoint) -> bool:
    """By the architecture and the head on a DeBERTa encoder."""
    tensors = {HEAD, "pooler.dense.weight", f"{_BACKBONE}.encoder.rel_embeddings.weight"}
    return checkpoint.architecture == "DebertaV2ForSequenceClassification" and tensors <= set(checkpoint.tensors)


def plan(checkpoint: Checkpoint, options: Options) -> Plan:
    """Reference: transformers' DebertaV2ForSequenceClassification; prompt as tokenizer(question, answer)."""
    activation = checkpoint.config.get("pooler_hidden_act", "gelu")
    if activation != "gelu":
        raise CheckpointError(
            f"{checkpoint.id}: config.json: pooler_hidden_act {activation!r}, only 'gelu' is supported"
        )
    config = DebertaConfig.from_hf(checkpoint.config)
    labels = Labels.of_head(checkpoint, HEAD, options)
    tokenizer = read_tokenizer(checkpoint.folder)
    prompt = chat_prompt(
        tokenizer,
        options,
        where=checkpoint.id,
        max_length=int(checkpoint.config.get("max_position_embeddings", 512)),
        template=TEMPLATE,
        add_special_tokens=True,
    )
    return Plan(
        module=PairClassifier(config, labels),
        outputs=labels.outputs,
        tensors=checkpoint.tensors,
        unused=is_buffer,
        tokenizer_json=tokenizer.json,
        pooling="FIRST-TOKEN",
        pad_token_id=pad_or_eos(checkpoint),
        prompt=prompt,
        architecture=config.summary(),
        parameters=labels.parameters,
        causal=False,
    )
