"""RewardModel-Mistral-7B-for-DPA: ten attributes read at the last token."""

from pathlib import Path
from typing import Any

from checkpoints.decoder import decoder_config, draw_decoder
from checkpoints.hub_folder import copy_tokenizer, write_config, write_tensors
from checkpoints.weights import Weights

ATTRIBUTES = 10


def dpa_rm(
    folder: Path,
    *,
    bias: bool = False,
    dtype: str = "bfloat16",
    shards: int = 1,
    seed: int = 0,
    **config_overrides: Any,
) -> Path:
    """`MistralForAttributePrediction`: `score.weight` [10, hidden], optional `score.bias`; no pad id."""
    copy_tokenizer("mistral", folder)
    class_name = "MistralForAttributePrediction"
    config = decoder_config("mistral", folder, dtype) | {
        "architectures": [class_name],
        "attention_dropout": 0.1,
        "auto_map": {"AutoModelForSequenceClassification": f"modeling_custom.{class_name}"},
        "id2label": {str(index): f"LABEL_{index}" for index in range(ATTRIBUTES)},
        "label2id": {f"LABEL_{index}": index for index in range(ATTRIBUTES)},
        **config_overrides,
    }
    weights = Weights(seed, dtype)
    draw_decoder(weights, config)
    weights.linear("score", config["hidden_size"], ATTRIBUTES, bias=bias)
    write_config(folder, config)
    write_tensors(folder, weights.tensors, shards)
    return folder
