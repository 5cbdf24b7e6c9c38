"""ArmoRM: 19 objectives, a gate that reads the prompt, a transform that removes verbosity. semantics.md 1."""

from __future__ import annotations

from collections.abc import Sequence

from rm_export.checkpoint import Checkpoint
from rm_export.errors import CheckpointError
from rm_export.families.plan import Plan, is_buffer
from rm_export.graph import positions
from rm_export.graph.decoder import Decoder
from rm_export.graph.decoder_config import DecoderConfig
from rm_export.graph.heads import GatingNetwork
from rm_export.graph.module import Float32Linear, Float32Module, Module, Op, Value, Weight
from rm_export.graph.rows import Rows
from rm_export.options import Options
from rm_export.tensors import transpose
from rm_export.tokenizer import assistant_header, chat_prompt, read_tokenizer

NAME = "armorm"
HUB_ID = "RLHFlow/ArmoRM-Llama3-8B-v0.1"

OBJECTIVES = (
    "helpsteer-helpfulness",
    "helpsteer-correctness",
    "helpsteer-coherence",
    "helpsteer-complexity",
    "helpsteer-verbosity",
    "ultrafeedback-overall_score",
    "ultrafeedback-instruction_following",
    "ultrafeedback-truthfulness",
    "ultrafeedback-honesty",
    "ultrafeedback-helpfulness",
    "beavertails-is_safe",
    "prometheus-score",
    "argilla-overall_quality",
    "argilla-judge_lm",
    "code-complexity",
    "code-style",
    "code-explanation",
    "code-instruction-following",
    "code-readability",
)


class CoefficientTransform(Float32Module):
    """coefficients = gating @ T^T, so that sum(rewards * coefficients) = sum(gating * (rewards @ T))."""

    def __init__(self, objectives: int) -> None:
        super().__init__()
        self.matrix = Weight([objectives, objectives], transpose, sources=["/reward_transform_matrix"])

    def forward(self, op: Op, gating: Value) -> Value:
        """gating [batch, objectives] -> coefficients [batch, objectives]."""
        return op.MatMul(gating, self.matrix)


class ArmoRM(Module):
    """The whole scoring function; order of operations as in the released modeling_custom.py (semantics 1.3)."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: DecoderConfig,
        max_length: int,
        pad_token_id: int,
        pattern: Sequence[int],
    ) -> None:
        super().__init__()
        objectives = int(checkpoint.config.get("num_objectives", 19))
        self.pad_token_id = pad_token_id
        self.pattern = tuple(pattern)
        self.model = Decoder(config, max_length)
        self.regression_layer = Float32Linear(config.hidden_size, objectives)
        self.gating = GatingNetwork(
            config.hidden_size,
            objectives,
            temperature=float(checkpoint.config.get("gating_temperature", 10)),
            hidden_dim=int(checkpoint.config.get("gating_hidden_dim", 1024)),
            hidden_layers=int(checkpoint.config.get("gating_n_hidden", 3)),
        )
        self.transform = CoefficientTransform(objectives)

    def forward(self, op: Op, rows: Rows) -> dict[str, Value]:
        """Outputs `score` [batch] and `rewards`, `gating`, `coefficients` [batch, objectives]."""
        lengths, valid = positions.row_lengths(op, rows.attention_mask)
        last = positions.first_pad(op, rows.input_ids, lengths, self.pad_token_id)
        gate, found = positions.last_match(op, rows.input_ids, lengths, self.pattern)
        hidden = self.model(op, rows, op.Concat(op.Unsqueeze(last, [1]), op.Unsqueeze(gate, [1]), axis=1))
        answer, prompt = op.Split(hidden, axis=1, num_outputs=2, _outputs=2)
        rewards = self.regression_layer(op, op.Squeeze(answer, [1]))
        gating = self.gating(op, op.Squeeze(prompt, [1]))
        coefficients = self.transform(op, gating)
        score = op.ReduceSum(op.Mul(rewards, coefficients), [1], keepdims=0)
        scorable = op.And(valid, found)
        ranks = {
            "score": (score, 1),
            "rewards": (rewards, 2),
            "gating": (gating, 2),
            "coefficients": (coefficients, 2),
        }
        return {name: positions.nan_unless(op, scorable, value, rank) for name, (value, rank) in ranks.items()}


def recognises(checkpoint: Checkpoint) -> bool:
    """A gating network and a regression layer: no other family has both."""
    return {"gating.logit_scale", "regression_layer.weight", "reward_transform_matrix"} <= set(checkpoint.tensors)


def plan(checkpoint: Checkpoint, options: Options) -> Plan:
    """Reference: one BOS from the template, right truncation at 4,096 ids (model card), pooling FIRST-PAD."""
    config = DecoderConfig.from_hf(checkpoint.config)
    tokenizer = read_tokenizer(checkpoint.folder)
    prompt = chat_prompt(tokenizer, options, where=checkpoint.id, max_length=min(4096, config.max_position_embeddings))
    pad_token_id = checkpoint.config.get("pad_token_id")
    if not isinstance(pad_token_id, int):
        raise CheckpointError(f"{checkpoint.id}: config.json has no pad_token_id, by which ArmoRM finds its last token")
    pattern = assistant_header(tokenizer, prompt, checkpoint.id)
    module = ArmoRM(checkpoint, config, prompt.max_length, pad_token_id, pattern)
    objectives = int(checkpoint.config.get("num_objectives", 19))
    names = OBJECTIVES if objectives == len(OBJECTIVES) else tuple(f"objective-{i}" for i in range(objectives))
    return Plan(
        module=module,
        outputs={
            "score": ("batch",),
            "rewards": ("batch", objectives),
            "gating": ("batch", objectives),
            "coefficients": ("batch", objectives),
        },
        tensors=checkpoint.tensors,
        unused=is_buffer,
        tokenizer_json=tokenizer.json,
        pooling="FIRST-PAD",
        pad_token_id=pad_token_id,
        prompt=prompt,
        architecture=config.summary(),
        parameters={"objectives": list(names), "gate_pattern": list(pattern)},
    )
