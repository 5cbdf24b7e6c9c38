"""The DPA reward model: ten objectives from one linear layer, its own hand-written prompt. semantics.md 4."""

from __future__ import annotations

from rm_export.checkpoint import Checkpoint
from rm_export.errors import CheckpointError
from rm_export.families.armorm import OBJECTIVES as ARMORM_OBJECTIVES
from rm_export.families.plan import Plan, is_buffer, pad_or_eos
from rm_export.graph import positions
from rm_export.graph.decoder import Decoder
from rm_export.graph.decoder_config import DecoderConfig
from rm_export.graph.module import Float32Linear, Module, Op, Value
from rm_export.graph.rows import Rows
from rm_export.options import Options
from rm_export.tokenizer import chat_prompt, read_tokenizer

NAME = "dpa-rm"
HUB_ID = "RLHFlow/RewardModel-Mistral-7B-for-DPA-v1"

OBJECTIVES = ARMORM_OBJECTIVES[:10]
"""ArmoRM's first ten, in its order (model cards of both)."""

# The card documents one turn; longer chats continue its User:/Assistant: lines, which is our choice.
TEMPLATE = (
    "[INST] You must read the following conversation carefully and rate the assistant's response from score 0-100 in "
    "these aspects: helpfulness, correctness, coherence, honesty, complexity, verbosity"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '\\n\\nUser: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '\\n\\nAssistant: ' + message['content'] }}"
    "{% else %}{{ raise_exception('the DPA reward model knows the roles user and assistant, not ' + message['role']) }}"
    "{% endif %}{% endfor %}{{ ' [/INST]' }}"
)


class DPARewardModel(Module):
    """Decoder and ten-objective layer, read at the last token, the end of [/INST]."""

    def __init__(self, config: DecoderConfig, max_length: int, objectives: int, bias: bool) -> None:
        super().__init__()
        self.model = Decoder(config, max_length)
        self.score = Float32Linear(config.hidden_size, objectives, bias)

    def forward(self, op: Op, rows: Rows) -> dict[str, Value]:
        """Outputs `score` [batch] (objective 0, helpfulness) and `rewards` [batch, objectives]."""
        lengths, valid = positions.row_lengths(op, rows.attention_mask)
        last = op.Unsqueeze(positions.mask_sum(op, lengths), [1])
        rewards = self.score(op, op.Squeeze(self.model(op, rows, last), [1]))
        return {
            "score": positions.nan_unless(op, valid, op.Gather(rewards, 0, axis=1), 1),
            "rewards": positions.nan_unless(op, valid, rewards, 2),
        }


def recognises(checkpoint: Checkpoint) -> bool:
    """By its own architecture name."""
    return checkpoint.architecture == "MistralForAttributePrediction"


def plan(checkpoint: Checkpoint, options: Options) -> Plan:
    """Reference: the card's text tokenised with one BOS. Its custom class is unknown: any extra tensor is refused."""
    if "score.weight" not in checkpoint.tensors:
        raise CheckpointError(f"{checkpoint.id} holds no score.weight, so it is no DPA reward model")
    config = DecoderConfig.from_hf(checkpoint.config)
    tokenizer = read_tokenizer(checkpoint.folder)
    prompt = chat_prompt(
        tokenizer,
        options,
        where=checkpoint.id,
        max_length=min(4096, config.max_position_embeddings),
        template=TEMPLATE,
        add_special_tokens=True,
    )
    objectives = checkpoint.tensors["score.weight"].dims[0]
    if objectives != len(OBJECTIVES):
        raise CheckpointError(f"{checkpoint.id}: score.weight has {objectives} rows, the DPA reward model has 10")
    return Plan(
        module=DPARewardModel(config, prompt.max_length, objectives, bias="score.bias" in checkpoint.tensors),
        outputs={"score": ("batch",), "rewards": ("batch", objectives)},
        tensors=checkpoint.tensors,
        unused=is_buffer,
        tokenizer_json=tokenizer.json,
        pooling="MASK-SUM",
        pad_token_id=pad_or_eos(checkpoint),
        prompt=prompt,
        architecture=config.summary(),
        parameters={"objectives": list(OBJECTIVES)},
    )
