"""Config and tensors of the decoder backbones, named as transformers names them."""

from pathlib import Path
from typing import Any

from checkpoints.hub_folder import token_ids
from checkpoints.weights import Weights

TOKENIZER = {
    "llama": "llama3",
    "mistral": "mistral",
    "qwen2": "qwen",
    "qwen3": "qwen",
    "gemma": "gemma",
    "gemma2": "gemma",
}
CLASS_PREFIX = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
}

_SHARED = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 160,
    "max_position_embeddings": 8192,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_cache": False,
}
_GEMMA = {
    "attention_bias": False,
    "head_dim": 32,  # heads * head_dim is not hidden_size
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 72,  # sqrt(72) rounds visibly in bfloat16
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
_ARCHITECTURE: dict[str, dict[str, Any]] = {
    "llama": {
        "attention_bias": False,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 500000.0,
    },
    "mistral": {"rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": None},
    "qwen2": {
        "max_window_layers": 1,
        "rope_theta": 1000000.0,
        "sliding_window": 24,
        "use_sliding_window": False,
    },
    "qwen3": {
        "attention_bias": False,
        "head_dim": 24,  # heads * head_dim is not hidden_size
        "max_window_layers": 1,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "gemma": {**_GEMMA, "num_key_value_heads": 1},
    "gemma2": {
        **_GEMMA,
        "attn_logit_softcapping": 5.0,  # the published 50 is out of reach of these small scores
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 24,  # not head_dim, as in Gemma-2-27B
        "sliding_window": 24,
        "num_hidden_layers": 4,
    },
}
_SPECIAL_TOKENS = {
    "llama": {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "pad": "[PAD]"},
    "mistral": {"bos": "<s>", "eos": "</s>"},
    "qwen2": {"bos": "<|endoftext|>", "eos": "<|im_end|>", "pad": "<|endoftext|>"},
    "qwen3": {"bos": "<|endoftext|>", "eos": "<|im_end|>", "pad": "<|endoftext|>"},
    "gemma": {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>"},
    "gemma2": {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>"},
}


def decoder_config(backbone: str, folder: Path, dtype: str, **overrides: Any) -> dict[str, Any]:
    """config.json as transformers 4 wrote it; the tokenizer already in `folder` gives ids and vocab_size."""
    ids = token_ids(folder)
    roles = _SPECIAL_TOKENS[backbone]
    return {
        "model_type": backbone,
        **_SHARED,
        **_ARCHITECTURE[backbone],
        **{f"{role}_token_id": ids[token] for role, token in roles.items() if token in ids},
        "torch_dtype": dtype,
        "transformers_version": "4.44.2",
        "vocab_size": max(ids.values()) + 1,
        **overrides,
    }


def draw_decoder(weights: Weights, config: dict[str, Any]) -> None:
    """`model.*`: embeddings, layers and final norm."""
    backbone, hidden, inner = config["model_type"], config["hidden_size"], config["intermediate_size"]
    gemma = backbone.startswith("gemma")
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    qkv_bias = config.get("attention_bias", False) or backbone == "qwen2"
    norms = ["input_layernorm", "post_attention_layernorm"]
    if backbone == "gemma2":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]

    # Gemma multiplies embeddings by sqrt(hidden); unscaled ones would drown the layers
    weights.normal("model.embed_tokens.weight", config["vocab_size"], hidden, std=hidden**-0.5 if gemma else 1.0)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        for norm in norms:
            weights.rms_norm(f"{layer}.{norm}", hidden, offset=gemma)
        attention = f"{layer}.self_attn"
        weights.linear(f"{attention}.q_proj", hidden, heads * head_dim, bias=qkv_bias)
        weights.linear(f"{attention}.k_proj", hidden, groups * head_dim, bias=qkv_bias)
        weights.linear(f"{attention}.v_proj", hidden, groups * head_dim, bias=qkv_bias)
        weights.linear(f"{attention}.o_proj", heads * head_dim, hidden, bias=config.get("attention_bias", False))
        if backbone == "qwen3":
            weights.rms_norm(f"{attention}.q_norm", head_dim)
            weights.rms_norm(f"{attention}.k_norm", head_dim)
        mlp_bias = config.get("mlp_bias", False)
        weights.linear(f"{layer}.mlp.gate_proj", hidden, inner, bias=mlp_bias)
        weights.linear(f"{layer}.mlp.up_proj", hidden, inner, bias=mlp_bias)
        weights.linear(f"{layer}.mlp.down_proj", inner, hidden, bias=mlp_bias)
    weights.rms_norm("model.norm", hidden, offset=gemma)
