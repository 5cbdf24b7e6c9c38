"""Skywork-, FsfairX- and GRM-ft-like models: *ForSequenceClassification with one score."""

from pathlib import Path
from typing import Any

from checkpoints.decoder import CLASS_PREFIX, TOKENIZER, decoder_config, draw_decoder
from checkpoints.hub_folder import copy_tokenizer, pad_with_eos, write_config, write_tensors
from checkpoints.weights import Weights


def scalar(
    folder: Path,
    *,
    backbone: str = "llama",
    num_labels: int = 1,
    dtype: str = "bfloat16",
    shards: int = 1,
    seed: int = 0,
    **config_overrides: Any,
) -> Path:
    """`score.weight` [num_labels, hidden] without bias, all in `dtype`; Mistral pads with eos.

    Useful `config_overrides`: rope_scaling={"type": "linear", "factor": 4.0} (llama), sliding_window
    (mistral, gemma2), use_sliding_window=True (qwen2), attention_bias, mlp_bias, head_dim.
    """
    copy_tokenizer(TOKENIZER[backbone], folder)
    if backbone == "mistral":
        pad_with_eos(folder)
    config = decoder_config(backbone, folder, dtype)
    config |= {
        "architectures": [f"{CLASS_PREFIX[backbone]}ForSequenceClassification"],
        "id2label": {str(index): f"LABEL_{index}" for index in range(num_labels)},
        "label2id": {f"LABEL_{index}": index for index in range(num_labels)},
        "pad_token_id": config.get("pad_token_id", config["eos_token_id"]),
        **config_overrides,
    }
    weights = Weights(seed, dtype)
    draw_decoder(weights, config)
    weights.linear("score", config["hidden_size"], num_labels, bias=False)
    write_config(folder, config)
    write_tensors(folder, weights.tensors, shards)
    return folder
