"""The float32 torch reference of every family, on rows of token ids: what a bundle is compared with.

The backbone is transformers' own class, and so is the head where transformers has one; the other heads are a
few lines of plain torch in the order of the authors' code. Needs the extra `reference`.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_export.errors import ExportError
from rm_export.reference_weights import CheckpointWeights, hf_config, hf_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    from rm_export.checkpoint import Checkpoint

    Outputs = dict[str, torch.Tensor]
    Layer = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Reference:
    """A family's scoring function in float32.

    score: ids [tokens] -> the outputs of that row, None if the family cannot score it.
    shapes: the shape of every output for one row, in the order of the graph contract.
    """

    score: Callable[[torch.Tensor], Outputs | None]
    shapes: Mapping[str, tuple[int, ...]]

    def run(
        self,
        rows: Sequence[NDArray[np.int64]],
        on_row: Callable[[], None] | None = None,
        threads: int | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Rows of ids -> outputs by name, float32 [len(rows), ...]; every row runs alone and unpadded.

        A row the family cannot score (no token, no gate or prefix token) is NaN, as in the graph contract.
        on_row: called after each row. threads: for torch while this runs, None = as it is set.
        """
        import torch

        results = {name: np.full((len(rows), *shape), np.nan, np.float32) for name, shape in self.shapes.items()}
        for place, row in enumerate(rows):
            with torch.inference_mode(), _torch_threads(threads):
                outputs = self.score(torch.from_numpy(np.array(row, np.int64))) if len(row) else None
            if outputs is not None:
                for name, values in results.items():
                    values[place] = outputs[name].numpy()
            if on_row is not None:
                on_row()
        return results


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _Opening:
    """What a family's reference is made from."""

    checkpoint: Checkpoint
    weights: CheckpointWeights
    parameters: Mapping[str, Any]
    backbone_config: Mapping[str, Any]

    def backbone(self) -> Any:
        """The decoder stored under `model.`, without any head."""
        return self.weights.load(hf_model("AutoModel", hf_config(self.checkpoint.config)), "model.")

    def linear(self, name: str) -> Layer:
        """x [..., in] -> x @ weight^T, plus a bias if the checkpoint stores one."""
        import torch

        weight = self.weights.take(f"{name}.weight")
        bias = self.weights.take(f"{name}.bias") if f"{name}.bias" in self.weights else None
        return lambda x: torch.nn.functional.linear(x, weight, bias)


def open_reference(
    checkpoint: Checkpoint,
    family: str,
    parameters: Mapping[str, Any] | None = None,
    backbone_config: Mapping[str, Any] | None = None,
) -> Reference:
    """Load a checkpoint as its family's reference; one float32 copy of the weights is held.

    parameters: the manifest's (gate_pattern of armorm, choice_ids of pair-pm, score_label of scalar,
    prefix_ids of pairrm).
    backbone_config: DeBERTa's config.json where the checkpoint's own does not hold it (the PairRM layout).
    Raises ExportError without torch and transformers, CheckpointError for missing or unknown tensors.
    """
    try:
        import torch  # noqa: F401  # only whether it is there
        import transformers
    except ImportError as error:
        raise ExportError(f"the reference needs {error.name}; pip install 'rm-export[reference]'") from None
    if family not in _FAMILIES:
        raise ExportError(f"there is no reference for family {family!r} (known: {', '.join(_FAMILIES)})")
    opening = _Opening(
        checkpoint, CheckpointWeights(checkpoint), parameters or {}, backbone_config or checkpoint.config
    )
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)  # it advises on training
    try:
        return _FAMILIES[family](opening)
    finally:
        transformers.logging.set_verbosity(verbosity)


def _armorm(opening: _Opening) -> Reference:
    """LlamaForRewardModelWithGating of the released modeling_custom.py (semantics 1.2, 1.3)."""
    import torch

    config = opening.checkpoint.config
    model = opening.backbone()
    regression_layer = opening.linear("regression_layer")
    transform = opening.weights.take("reward_transform_matrix")
    depth = int(config.get("gating_n_hidden", 3))
    *hidden_layers, last_layer = (opening.linear(f"gating.layers.{index}") for index in range(depth + 1))
    logit_scale = opening.weights.take("gating.logit_scale")
    opening.weights.finish()
    temperature = float(config.get("gating_temperature", 10))
    pad_token_id = int(config["pad_token_id"])
    pattern = [int(token) for token in opening.parameters["gate_pattern"]]

    def score(ids: torch.Tensor) -> Outputs | None:
        gate_index = _last_match(ids.tolist(), pattern)
        if gate_index is None:
            return None
        hidden = model(input_ids=ids[None]).last_hidden_state[0]
        reward_index = (int((ids == pad_token_id).int().argmax()) - 1) % len(ids)  # FIRST-PAD
        rewards = regression_layer(hidden[reward_index])
        x = hidden[gate_index]
        for layer in hidden_layers:
            x = torch.relu(layer(x))
        gating = torch.softmax(last_layer(x) / temperature, dim=0) * logit_scale[0]
        adjusted = rewards @ transform
        return {
            "score": (gating * adjusted).sum(),
            "rewards": rewards,
            "gating": gating,
            "coefficients": gating @ transform.T,
        }

    objectives = (len(transform),)
    return Reference(score, {"score": (), "rewards": objectives, "gating": objectives, "coefficients": objectives})


def _last_match(ids: Sequence[int], pattern: Sequence[int]) -> int | None:
    """Index of the first token of the last occurrence, found by scanning backwards; None without one."""
    for start in range(len(ids) - len(pattern), -1, -1):
        if list(ids[start : start + len(pattern)]) == list(pattern):
            return start
    return None


def _grm(opening: _Opening) -> Reference:
    """GRM's value head with its dropout off, read at MASK-SUM (semantics 3.3)."""
    import torch

    model = opening.backbone()
    prefix = "v_head.summary"
    if f"{prefix}.weight" in opening.weights:
        layers = [opening.linear(prefix)]
    else:
        names = {name.rpartition(".")[0] for name in opening.weights.names(f"{prefix}.")}
        layers = [opening.linear(name) for name in sorted(names, key=lambda name: int(name.split(".")[2]))]
    opening.weights.finish(lambda name: name == "lm_head.weight")

    def score(ids: torch.Tensor) -> Outputs:
        value = model(input_ids=ids[None]).last_hidden_state[0, -1]
        for place, layer in enumerate(layers):
            value = layer(torch.relu(value) if place else value)
        return {"score": value[0]}

    return Reference(score, {"score": ()})


def _scalar(opening: _Opening) -> Reference:
    """transformers' *ForSequenceClassification with its own pooling; a stored score.bias is added."""
    import torch

    head = "score.weight" if "score.weight" in opening.weights else "classifier.weight"  # DeBERTa's
    labels, hidden_size = opening.weights.dims(head)
    config = hf_config(opening.checkpoint.config, num_labels=labels)
    model = hf_model("AutoModelForSequenceClassification", config)
    if "score.bias" in opening.weights:
        model.score = torch.nn.Linear(hidden_size, labels)
    opening.weights.load(model)
    opening.weights.finish()
    label = int(opening.parameters.get("score_label", 0))

    def score(ids: torch.Tensor) -> Outputs:
        logits = model(input_ids=ids[None]).logits[0]
        return {"score": logits[label], "logits": logits}

    return Reference(score, {"score": ()} if labels == 1 else {"score": (), "logits": (labels,)})


def _dpa_rm(opening: _Opening) -> Reference:
    """A linear layer with an optional bias at the last token; `score` is its output 0 (semantics 4.3)."""
    model = opening.backbone()
    objectives, _ = opening.weights.dims("score.weight")
    head = opening.linear("score")
    opening.weights.finish()

    def score(ids: torch.Tensor) -> Outputs:
        rewards = head(model(input_ids=ids[None]).last_hidden_state[0, -1])
        return {"score": rewards[0], "rewards": rewards}

    return Reference(score, {"score": (), "rewards": (objectives,)})


def _pair_pm(opening: _Opening) -> Reference:
    """The causal LM's next-token logits over the whole vocabulary, two columns of them (semantics 2.3)."""
    tied = "lm_head.weight" not in opening.weights
    config = hf_config(opening.checkpoint.config, tie_word_embeddings=tied)
    model = opening.weights.load(hf_model("AutoModelForCausalLM", config))
    opening.weights.finish()
    choices = [int(token) for token in opening.parameters["choice_ids"]]

    def score(ids: torch.Tensor) -> Outputs:
        logits = model(input_ids=ids[None], logits_to_keep=1).logits[0, -1, choices]
        return {"score": logits[0] - logits[1], "logits": logits}

    return Reference(score, {"score": (), "logits": (2,)})


def _pairrm(opening: _Opening) -> Reference:
    """DebertaV2PairRM: the head on source and candidate, left minus right (semantics 5.4)."""
    import torch

    prefix = "pretrained_model."
    vocab_size, _ = opening.weights.dims(f"{prefix}embeddings.word_embeddings.weight")
    config = hf_config(opening.backbone_config, vocab_size=vocab_size)
    model = opening.weights.load(hf_model("AutoModel", config), prefix)
    inner, outer = opening.linear("head_layer.1"), opening.linear("head_layer.4")
    opening.weights.finish()
    prefix_ids = [int(token) for token in opening.parameters["prefix_ids"]]

    def score(ids: torch.Tensor) -> Outputs | None:
        tokens = ids.tolist()
        if not set(prefix_ids) <= set(tokens):
            return None
        hidden = model(input_ids=ids[None]).last_hidden_state[0]
        source, *candidates = (hidden[tokens.index(token)] for token in prefix_ids)
        left, right = (outer(torch.tanh(inner(torch.cat([source, candidate])))) for candidate in candidates)
        logit = (left - right).mean()  # over n_tasks
        return {"score": logit, "logit": logit}

    return Reference(score, {"score": (), "logit": ()})


_FAMILIES = {
    "armorm": _armorm,
    "grm": _grm,
    "scalar": _scalar,
    "dpa-rm": _dpa_rm,
    "pair-pm": _pair_pm,
    "pairrm": _pairrm,
}
