"""ArmoRM's reward model in torch: a Llama backbone, 19 reward heads and a gate that reads the prompt.

Only the training script imports this module. Parameter names are the tensor names of RLHFlow/ArmoRM-Llama3-8B-v0.1;
the forward follows its `modeling_custom.py` step by step.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel


@dataclass(frozen=True)
class RewardOutput:
    """`hidden` [B, L, hidden], `rewards` [B, 19], `gating_output` [B, 19], `score` [B]."""

    hidden: Tensor
    rewards: Tensor
    gating_output: Tensor
    score: Tensor


class GatingNetwork(nn.Module):
    """An MLP from the prompt embedding [B, hidden] to the weights [B, num_objectives] of the objectives.

    The temperature divides before the softmax, the scale multiplies after it.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        widths = [config.hidden_size, *[config.gating_hidden_dim] * config.gating_n_hidden]
        layers = [nn.Linear(before, after) for before, after in pairwise(widths)]
        self.layers = nn.ModuleList([*layers, nn.Linear(widths[-1], config.num_objectives)])
        self.logit_scale = nn.Parameter(torch.ones(1))
        self.temperature: float = config.gating_temperature

    def forward(self, prompt_embedding: Tensor) -> Tensor:
        x = prompt_embedding
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return F.softmax(self.layers[-1](x) / self.temperature, dim=1) * self.logit_scale[0]


class LlamaForRewardModelWithGating(nn.Module):
    """`score = sum(gate * (rewards @ T))`, the rewards read at the last token, the gate at the end of the prompt."""

    def __init__(self, config: LlamaConfig, reward_transform: Tensor, header: list[int]) -> None:
        super().__init__()
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, config.num_objectives, bias=False)
        self.reward_transform_matrix = nn.Parameter(reward_transform, requires_grad=False)
        self.gating = GatingNetwork(config)
        self.header = header

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> RewardOutput:
        """Right-padded `input_ids` and `attention_mask`, both [B, L]."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(input_ids))
        rewards = self.regression_layer(hidden[rows, attention_mask.sum(dim=1) - 1])
        gating_output = self.gating(hidden[rows, last_header(input_ids, self.header)])
        adjusted = rewards @ self.reward_transform_matrix
        return RewardOutput(hidden, rewards, gating_output, (gating_output * adjusted).sum(dim=1))


@torch.no_grad()
def start_gate(gating: GatingNetwork, prompt_embeddings: Tensor) -> None:
    """Set the gate to a new random start that fits its input, `prompt_embeddings` [prompts, hidden].

    All prompts end in the same token, so their embeddings differ by little around a large mean, and a plain start
    never sees the difference. The first layer therefore begins with the inputs' mean and deviation folded in, and the
    last one with the temperature.
    """
    weights = gating.state_dict()  # shares its memory with the network
    names = [f"layers.{i}" for i in range(len(gating.layers))]
    for name in names:
        nn.init.kaiming_normal_(weights[f"{name}.weight"])
        weights[f"{name}.bias"].zero_()
    first, last = names[0], names[-1]
    weights[f"{first}.weight"] /= prompt_embeddings.std(dim=0)
    weights[f"{first}.bias"] -= weights[f"{first}.weight"] @ prompt_embeddings.mean(dim=0)
    weights[f"{last}.weight"] *= gating.temperature / 2


def look_for_repeats(model: LlamaForRewardModelWithGating, config: LlamaConfig) -> None:
    """Start half of the query heads equal to their key head, so that a token first attends to its own repeats.

    An answer that takes up the words of its question is then seen from the first step on; from the usual start a
    model of this size needs many times more steps to find that.
    """
    weights = model.state_dict()  # shares its memory with the model
    width = config.hidden_size // config.num_attention_heads
    for i in range(config.num_hidden_layers):
        key = weights[f"model.layers.{i}.self_attn.k_proj.weight"].view(-1, width, config.hidden_size)
        query = weights[f"model.layers.{i}.self_attn.q_proj.weight"].view(len(key), -1, width, config.hidden_size)
        query[:, 0] = key  # the first query head of each key head


def last_header(input_ids: Tensor, header: list[int]) -> Tensor:
    """The index [B] of the first token of the last assistant header, which is the `<|eot_id|>` before the answer."""
    windows = input_ids.unfold(1, len(header), 1)
    matches = (windows == torch.tensor(header)).all(dim=2)
    return (matches * torch.arange(matches.shape[1])).amax(dim=1)
