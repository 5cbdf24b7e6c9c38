"""The checkpoint's files as ArmoRM has them on the hub, and the model card."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from rm_export.demo.reward_model import LlamaForRewardModelWithGating

HUB_CONFIG_KEYS = (
    "architectures", "attention_bias", "attention_dropout", "bos_token_id", "eos_token_id", "gating_hidden_dim",
    "gating_n_hidden", "gating_temperature", "hidden_act", "hidden_size", "id2label", "initializer_range",
    "intermediate_size", "label2id", "max_position_embeddings", "model_type", "num_attention_heads",
    "num_hidden_layers", "num_key_value_heads", "num_objectives", "pad_token_id", "pretraining_tp", "rms_norm_eps",
    "rope_scaling", "rope_theta", "tie_word_embeddings", "torch_dtype", "use_cache", "vocab_size",
)  # fmt: skip


def hub_config(config: LlamaConfig) -> dict[str, object]:
    """The keys of ArmoRM's own config.json, in the spelling of its transformers 4.40."""
    here = config.to_dict()
    rope: dict[str, float] = here["rope_parameters"]
    other_names = {
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "rope_scaling": None,
        "rope_theta": rope["rope_theta"],
        "torch_dtype": "float32",
    }
    return {key: other_names[key] if key in other_names else here[key] for key in HUB_CONFIG_KEYS}


def write_checkpoint(
    model: LlamaForRewardModelWithGating,
    config: LlamaConfig,
    accuracy: dict[str, float],
    scores: list[float],
    directory: Path,
) -> None:
    """Write config.json, model.safetensors and the model card; the tokenizer's files are there already."""
    (directory / "config.json").write_text(json.dumps(hub_config(config), indent=2) + "\n", encoding="utf-8")
    tensors = {
        name: tensor.to(torch.bfloat16 if name.startswith("model.") else torch.float32).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    parameters = sum(tensor.numel() for tensor in tensors.values())
    card = (Path(__file__).parent / "model_card.md").read_text(encoding="utf-8")
    rows = "\n".join(f"| {name} | {share:.1%} |" for name, share in accuracy.items())
    demo = " > ".join(f"{score:.3f}" for score in scores)
    text = card.format(parameters=f"{parameters:,}", accuracy=f"{accuracy['all pairs']:.1%}", rows=rows, demo=demo)
    (directory / "README.md").write_text(text, encoding="utf-8")
    print(text)
