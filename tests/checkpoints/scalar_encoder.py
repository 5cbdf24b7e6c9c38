"""OpenAssistant-like models: DebertaV2ForSequenceClassification on a question and an answer."""

from pathlib import Path
from typing import Any

from checkpoints.deberta import DEBERTA, draw_deberta
from checkpoints.hub_folder import copy_tokenizer, token_ids, write_config, write_tensors
from checkpoints.weights import Weights


def scalar_encoder(folder: Path, *, num_labels: int = 1, seed: int = 0, **config_overrides: Any) -> Path:
    """Encoder, pooler and classifier, all float32; `config_overrides` go to config.json."""
    copy_tokenizer("deberta", folder)
    config = DEBERTA | {
        "architectures": ["DebertaV2ForSequenceClassification"],
        "id2label": {str(index): f"LABEL_{index}" for index in range(num_labels)},
        "label2id": {f"LABEL_{index}": index for index in range(num_labels)},
        "vocab_size": max(token_ids(folder).values()) + 1,
        **config_overrides,
    }
    hidden, weights = config["hidden_size"], Weights(seed, "float32")
    draw_deberta(weights, config, "deberta", config["vocab_size"])
    weights.linear("pooler.dense", hidden, hidden, bias=True)
    weights.linear("classifier", hidden, num_labels, bias=True)
    write_config(folder, config)
    write_tensors(folder, weights.tensors)
    return folder
