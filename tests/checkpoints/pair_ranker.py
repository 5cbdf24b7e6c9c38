"""PairRM: DeBERTa-v2 with one head on (source, candidate) states, in its two published layouts."""

import shutil
from pathlib import Path
from typing import Any, Literal

from checkpoints.deberta import DEBERTA, draw_deberta
from checkpoints.hub_folder import (
    TOKENIZERS,
    copy_tokenizer,
    token_ids,
    write_config,
    write_json,
    write_tensors,
)
from checkpoints.weights import Weights

BACKBONE_NAME = "microsoft/deberta-v3-large"
_RANKER = {
    "cache_dir": "./hf_models/microsoft/deberta-v3-large",
    "candidate_maxlength": 412,
    "drop_out": 0.05,
    "fp16": True,
    "inference_mode": "bubble",
    "load_checkpoint": None,
    "loss_type": "instructgpt",
    "model_name": BACKBONE_NAME,
    "model_type": "deberta",
    "n_tasks": 1,
    "num_neg": 5,
    "num_pos": 5,
    "ranker_type": "pairranker",
    "reduce_type": "linear",
    "source_maxlength": 1224,
    "sub_sampling_mode": "all_pair",
    "sub_sampling_ratio": 0.4,
}


def pairrm(
    folder: Path,
    *,
    layout: Literal["PairRM-hf", "PairRM"] = "PairRM-hf",
    dtype: str = "float32",
    shards: int = 1,
    seed: int = 0,
    **config_overrides: Any,
) -> Path:
    """The same weights for both layouts.

    "PairRM-hf": a deberta-v2 config with the prefix ids, and tokenizer.json. "PairRM": LLM-Blender's ranker
    config and added_tokens.json; the backbone's config and spm.model are a second repository, written to
    `folder`/microsoft/deberta-v3-large. `config_overrides` go to the deberta config, or to the ranker config
    for the keys it has (n_tasks, source_maxlength, ...).
    """
    copy_tokenizer("deberta", folder)
    ids = token_ids(folder)
    vocab_size = ids["<|candidate|>"] + 1
    deberta = DEBERTA | {key: value for key, value in config_overrides.items() if key not in _RANKER}
    ranker = _RANKER | {key: value for key, value in config_overrides.items() if key in _RANKER}
    if layout == "PairRM-hf":
        config = deberta | {
            "architectures": ["DebertaV2PairRM"],
            "cand1_prefix_id": ids["<|candidate1|>"],
            "cand2_prefix_id": ids["<|candidate2|>"],
            "cand_prefix_id": ids["<|candidate|>"],
            "drop_out": ranker["drop_out"],
            "n_tasks": ranker["n_tasks"],
            "source_prefix_id": ids["<|source|>"],
            "torch_dtype": dtype,
            "transformers_version": "4.36.2",
            "vocab_size": vocab_size,
        }
        write_config(folder, config)
    else:
        write_config(folder, ranker)
        for name in ("tokenizer.json", "spm.model"):
            (folder / name).unlink()
        backbone = folder / BACKBONE_NAME
        # rows beyond the tokenizer, as the published 128100; PairRM resized them
        write_config(backbone, deberta | {"vocab_size": vocab_size + 56})
        shutil.copyfile(TOKENIZERS / "deberta" / "spm.model", backbone / "spm.model")
        write_json(backbone / "tokenizer_config.json", {"do_lower_case": False, "vocab_type": "spm"})
    write_tensors(folder, _tensors(deberta, vocab_size, ranker["n_tasks"], dtype, seed), shards)
    return folder


def _tensors(config: dict[str, Any], vocab_size: int, n_tasks: int, dtype: str, seed: int) -> dict[str, Any]:
    weights = Weights(seed, dtype)
    hidden = config["hidden_size"]
    draw_deberta(weights, config, "pretrained_model", vocab_size)
    weights.linear("head_layer.1", 2 * hidden, hidden, bias=True)
    weights.linear("head_layer.4", hidden, n_tasks, bias=True, gain=3.0)
    return weights.tensors
