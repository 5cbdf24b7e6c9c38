"""The pairwise preference model: a causal LM asked "A or B?"; only two rows of lm_head are kept. semantics.md 2."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rm_export.checkpoint import Checkpoint
from rm_export.errors import CheckpointError
from rm_export.families.plan import Plan, is_buffer, pad_or_eos
from rm_export.graph import positions
from rm_export.graph.decoder import Decoder
from rm_export.graph.decoder_config import DecoderConfig
from rm_export.graph.module import Float32Module, Module, Op, Value, Weight
from rm_export.graph.rows import Rows
from rm_export.options import Options
from rm_export.tensors import StreamedTensor, pick_rows, transpose
from rm_export.tokenizer import assistant_header, chat_prompt, read_tokenizer, token_id
from rm_runtime.prompt_spec import PairChatPrompt

NAME = "pair-pm"
HUB_ID = "RLHFlow/pair-preference-model-LLaMA3-8B"

# Rendered by the authors with the chat template of a second tokenizer; roles go by index parity (semantics 2.2).
CONTEXT_TEMPLATE = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n {{ message['content'] }}"
    "{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
)
MESSAGE = "[CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b} \n"


class ChoiceHead(Float32Module):
    """The two rows of lm_head that score the next tokens "A" and "B", soft-capped where the model does so (gemma2)."""

    def __init__(self, hidden_size: int, rows: Sequence[int], source: str, softcap: float | None) -> None:
        super().__init__()
        self.softcap = softcap

        def choose(table: StreamedTensor) -> StreamedTensor:
            return transpose(pick_rows(table, rows))

        self.weight = Weight([hidden_size, len(rows)], transform=choose, sources=[source])

    def forward(self, op: Op, hidden: Value) -> Value:
        """hidden [batch, hidden_size] -> logits [batch, 2]."""
        logits = op.MatMul(hidden, self.weight)
        return op.Mul(op.Tanh(op.Div(logits, self.softcap)), self.softcap) if self.softcap else logits


class PairPM(Module):
    """Decoder and the two choice rows, read at the last attended token."""

    def __init__(
        self, config: DecoderConfig, max_length: int, rows: Sequence[int], tied: bool, softcap: float | None
    ) -> None:
        super().__init__()
        source = "/model.embed_tokens.weight" if tied else "weight"
        self.model = Decoder(config, max_length)
        self.lm_head = ChoiceHead(config.hidden_size, rows, source, softcap)

    def forward(self, op: Op, rows: Rows) -> dict[str, Value]:
        """Outputs `score` [batch], the log-odds A over B, and `logits` [batch, 2]."""
        lengths, valid = positions.row_lengths(op, rows.attention_mask)
        last = op.Unsqueeze(positions.mask_sum(op, lengths), [1])
        logits = self.lm_head(op, op.Squeeze(self.model(op, rows, last), [1]))
        a, b = op.Split(logits, axis=1, num_outputs=2, _outputs=2)
        return {
            "score": positions.nan_unless(op, valid, op.Squeeze(op.Sub(a, b), [1]), 1),
            "logits": positions.nan_unless(op, valid, logits, 2),
        }


def recognises(checkpoint: Checkpoint) -> bool:
    """A plain causal LM: it has no reward head of its own, so nothing else could be meant."""
    return checkpoint.architecture.endswith("ForCausalLM")


def plan(checkpoint: Checkpoint, options: Options) -> Plan:
    """Reference: no BOS, the assistant header at the end, never truncated.

    4,096 ids are allowed here; a longer prompt loses its oldest context, since its answers and its header must stay.
    """
    config = DecoderConfig.from_hf(checkpoint.config)
    tokenizer = read_tokenizer(checkpoint.folder)
    chat = chat_prompt(
        tokenizer,
        options,
        where=checkpoint.id,
        max_length=min(4096, config.max_position_embeddings),
        add_generation_prompt=True,
        remove_bos_text=True,
        truncation_side="left",
    )
    header = assistant_header(tokenizer, chat, checkpoint.id)
    chat = dataclasses.replace(chat, required_suffix=header)
    rows = [token_id(tokenizer, text, checkpoint.id) for text in ("A", "B")]
    tied = "lm_head.weight" not in checkpoint.tensors
    if tied and not checkpoint.config.get("tie_word_embeddings"):
        raise CheckpointError(f"{checkpoint.id} holds no lm_head.weight and does not tie it to the embeddings")
    softcap = checkpoint.config.get("final_logit_softcapping", 30.0) if config.model_type == "gemma2" else None
    return Plan(
        module=PairPM(config, chat.max_length, rows, tied, softcap),
        outputs={"score": ("batch",), "logits": ("batch", 2)},
        tensors=checkpoint.tensors,
        unused=is_buffer,
        tokenizer_json=tokenizer.json,
        pooling="MASK-SUM",
        pad_token_id=pad_or_eos(checkpoint),
        prompt=PairChatPrompt(CONTEXT_TEMPLATE, MESSAGE, chat),
        architecture=config.summary(),
        parameters={"choices": ["A", "B"], "choice_ids": rows, "temperature": 1.0},
    )
