"""Checkpoints of the real models' shapes: sparse files without their weights, or a few layers with random ones.

Configs are those of the published checkpoints (semantics: config.json of each hub repository).
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

TOKENIZERS = Path(__file__).parent.parent / "tests" / "data" / "tokenizers"

Shapes = dict[str, tuple[str, list[int]]]

_SMALL_VOCABULARY = 2048
"""Covers the ids of every small tokenizer; the size of the table has no part in a layer's speed."""
_SMALL_LLAMA_VOCABULARY = {
    "vocab_size": _SMALL_VOCABULARY,
    "bos_token_id": 1280,
    "eos_token_id": 1281,
    "pad_token_id": 1293,
}

_LLAMA3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "vocab_size": 128257,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "pad_token_id": 128256,
    "tie_word_embeddings": False,
}
_LLAMA32_3B = {
    **_LLAMA3_8B,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
}
_LLAMA32_1B = {
    **_LLAMA32_3B,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "head_dim": 64,
}
LLAMAS: dict[str, dict[str, Any]] = {"1B": _LLAMA32_1B, "3B": _LLAMA32_3B, "8B": _LLAMA3_8B}
"""Shapes of Llama-3.2-1B, Llama-3.2-3B and Meta-Llama-3-8B."""
DEBERTA_V3_LARGE = {
    "model_type": "deberta-v2",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-7,
    "max_position_embeddings": 512,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "relative_attention": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "vocab_size": 128100,
    "pad_token_id": 0,
}


def armorm_8b(folder: Path) -> Path:
    """RLHFlow/ArmoRM-Llama3-8B-v0.1: BF16 backbone, F32 heads."""
    config = {
        **_LLAMA3_8B,
        "architectures": ["LlamaForRewardModelWithGating"],
        "num_objectives": 19,
        "gating_temperature": 10,
        "gating_hidden_dim": 1024,
        "gating_n_hidden": 3,
    }
    shapes = decoder_shapes(config, "BF16")
    shapes["regression_layer.weight"] = ("F32", [19, 4096])
    shapes["reward_transform_matrix"] = ("F32", [19, 19])
    shapes["gating.logit_scale"] = ("F32", [1])
    sizes = [4096, 1024, 1024, 1024, 19]
    for layer in range(4):
        shapes[f"gating.layers.{layer}.weight"] = ("F32", [sizes[layer + 1], sizes[layer]])
        shapes[f"gating.layers.{layer}.bias"] = ("F32", [sizes[layer + 1]])
    return write_sparse(folder, config, shapes, "llama3")


def grm_3b(folder: Path) -> Path:
    """Ray2333/GRM-llama3.2-3B-sftreg: F16 backbone, F32 value head, tied embeddings."""
    config = {
        **_LLAMA32_3B,
        "architectures": ["LlamaForCausalLM"],
        "vhead_layer_type": "mlp",
        "vhead_num_layers": 1,
        "vhead_num_neurons": 1024,
    }
    shapes = decoder_shapes(config, "F16")
    shapes |= {
        "v_head.summary.0.weight": ("F32", [1024, 3072]),
        "v_head.summary.0.bias": ("F32", [1024]),
        "v_head.summary.2.weight": ("F32", [1, 1024]),
        "v_head.summary.2.bias": ("F32", [1]),
    }
    return write_sparse(folder, config, shapes, "llama31")


def pairrm(folder: Path) -> Path:
    """llm-blender/PairRM-hf: DeBERTa-v3-large in F32 and the pair head; prefix ids are those of the small tokenizer."""
    config = _pairrm_config(layers=24, vocab_size=128005)
    return write_sparse(folder, config, pairrm_shapes(config), "deberta")


def llama_1b(folder: Path, layers: int = 16) -> Path:
    """A sequence classifier with the first layers of Llama-3.2-1B's shape, random weights and a small vocabulary."""
    return llama(folder, "1B", num_hidden_layers=layers)


def llama(folder: Path, size: str, **overrides: Any) -> Path:
    """A sequence classifier of LLAMAS[size]'s shape, random bfloat16 weights and a small vocabulary.

    overrides: keys of config.json, for a smaller one.
    """
    config = {
        **LLAMAS[size],
        **_SMALL_LLAMA_VOCABULARY,
        "architectures": ["LlamaForSequenceClassification"],
        "num_labels": 1,
        **overrides,
    }
    shapes = decoder_shapes(config, "BF16")
    shapes["score.weight"] = ("BF16", [1, config["hidden_size"]])
    return write_random(folder, config, shapes, "llama3")


def pair_pm_1b(folder: Path, layers: int = 16) -> Path:
    """The pairwise preference model's form of the same: a language model's head over the vocabulary."""
    config = {
        **_LLAMA32_1B,
        **_SMALL_LLAMA_VOCABULARY,
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": layers,
        "tie_word_embeddings": False,
    }
    shapes = decoder_shapes(config, "BF16")
    shapes["lm_head.weight"] = ("BF16", [config["vocab_size"], config["hidden_size"]])
    return write_random(folder, config, shapes, "llama3")


def pairrm_layers(folder: Path, layers: int, **overrides: Any) -> Path:
    """PairRM-hf with the first layers of DeBERTa-v3-large's shape, random weights and a small vocabulary.

    overrides: keys of config.json, for a smaller one.
    """
    config = {**_pairrm_config(layers, vocab_size=_SMALL_VOCABULARY), **overrides}
    return write_random(folder, config, pairrm_shapes(config), "deberta")


def deberta_classifier(folder: Path, layers: int = 24) -> Path:
    """A DeBERTa sequence classifier with the first layers of v3-large's shape, random weights and a small vocabulary.

    The class and shape of OpenAssistant/reward-model-deberta-v3-large-v2.
    """
    config = {
        **DEBERTA_V3_LARGE,
        "architectures": ["DebertaV2ForSequenceClassification"],
        "num_hidden_layers": layers,
        "vocab_size": _SMALL_VOCABULARY,
        "num_labels": 1,
        "pooler_hidden_size": 1024,
        "pooler_hidden_act": "gelu",
    }
    hidden = config["hidden_size"]
    shapes = deberta_shapes(config, "deberta.")
    shapes |= {"pooler.dense.weight": ("F32", [hidden, hidden]), "pooler.dense.bias": ("F32", [hidden])}
    shapes |= {"classifier.weight": ("F32", [1, hidden]), "classifier.bias": ("F32", [1])}
    return write_random(folder, config, shapes, "deberta")


def pairrm_prefixes() -> tuple[int, int, int]:
    """Ids of the tokens in front of the source and the two candidates, in the checkpoints above."""
    source, first, second, _ = _pairrm_prefix_ids()
    return source, first, second


def _pairrm_prefix_ids() -> tuple[int, ...]:
    ids = json.loads((TOKENIZERS / "deberta" / "added_tokens.json").read_text())
    return tuple(ids[f"<|{name}|>"] for name in ("source", "candidate1", "candidate2", "candidate"))


def _pairrm_config(layers: int, vocab_size: int) -> dict[str, Any]:
    source, first, second, either = _pairrm_prefix_ids()
    return {
        **DEBERTA_V3_LARGE,
        "architectures": ["DebertaV2PairRM"],
        "num_hidden_layers": layers,
        "vocab_size": vocab_size,
        "n_tasks": 1,
        "source_prefix_id": source,
        "cand1_prefix_id": first,
        "cand2_prefix_id": second,
        "cand_prefix_id": either,
        "drop_out": 0.05,
    }


def pairrm_shapes(config: Mapping[str, Any]) -> Shapes:
    """Tensor names and shapes of PairRM-hf."""
    hidden = config["hidden_size"]
    return deberta_shapes(config, "pretrained_model.") | {
        "head_layer.1.weight": ("F32", [hidden, 2 * hidden]),
        "head_layer.1.bias": ("F32", [hidden]),
        "head_layer.4.weight": ("F32", [1, hidden]),
        "head_layer.4.bias": ("F32", [1]),
    }


def deberta_shapes(config: Mapping[str, Any], path: str) -> Shapes:
    """Tensor names and shapes of a DeBERTa-v3 encoder whose names begin with `path`."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {
        f"{path}embeddings.word_embeddings.weight": ("F32", [config["vocab_size"], hidden]),
        f"{path}encoder.rel_embeddings.weight": ("F32", [512, hidden]),
    }
    norms = [f"{path}embeddings.LayerNorm", f"{path}encoder.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"{path}encoder.layer.{layer}."
        linears = {f"attention.self.{name}_proj": (hidden, hidden) for name in ("query", "key", "value")}
        linears |= {
            "attention.output.dense": (hidden, hidden),
            "intermediate.dense": (inner, hidden),
            "output.dense": (hidden, inner),
        }
        for name, (rows, columns) in linears.items():
            shapes[f"{prefix}{name}.weight"] = ("F32", [rows, columns])
            shapes[f"{prefix}{name}.bias"] = ("F32", [rows])
        norms += [f"{prefix}attention.output.LayerNorm", f"{prefix}output.LayerNorm"]
    for norm in norms:
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = ("F32", [hidden])
    return shapes


def decoder_shapes(config: Mapping[str, Any], dtype: str) -> Shapes:
    """Tensor names and shapes of a llama backbone."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes: Shapes = {
        "model.embed_tokens.weight": (dtype, [config["vocab_size"], hidden]),
        "model.norm.weight": (dtype, [hidden]),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.q_proj.weight": (dtype, [queries, hidden]),
            f"{prefix}self_attn.k_proj.weight": (dtype, [keys, hidden]),
            f"{prefix}self_attn.v_proj.weight": (dtype, [keys, hidden]),
            f"{prefix}self_attn.o_proj.weight": (dtype, [hidden, queries]),
            f"{prefix}mlp.gate_proj.weight": (dtype, [inner, hidden]),
            f"{prefix}mlp.up_proj.weight": (dtype, [inner, hidden]),
            f"{prefix}mlp.down_proj.weight": (dtype, [hidden, inner]),
            f"{prefix}input_layernorm.weight": (dtype, [hidden]),
            f"{prefix}post_attention_layernorm.weight": (dtype, [hidden]),
        }
    return shapes


def write_sparse(folder: Path, config: Mapping[str, Any], shapes: Shapes, tokenizer: str) -> Path:
    """A checkpoint folder whose weights are a hole in the file: every value reads as zero."""
    _write_texts(folder, config, tokenizer)
    header, size = _header(shapes)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
    return folder


def write_random(folder: Path, config: Mapping[str, Any], shapes: Shapes, tokenizer: str) -> Path:
    """A checkpoint folder with normal weights of deviation 1/sqrt(inputs), norms around one, biases around zero.

    Tensor by tensor: an 8B checkpoint takes the memory of its largest tensor.
    """
    _write_texts(folder, config, tokenizer)
    rng = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(_header(shapes)[0])
        for name, (dtype, shape) in shapes.items():
            drawn = rng.standard_normal(shape, dtype=np.float32)
            if len(shape) == 2:
                drawn *= shape[1] ** -0.5
            else:
                drawn = 0.1 * drawn + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
            drawn.astype({"F32": np.float32, "BF16": ml_dtypes.bfloat16}[dtype]).tofile(file)
    return folder


def _header(shapes: Shapes) -> tuple[bytes, int]:
    """What a safetensors file of these tensors begins with, and the bytes of the tensors that follow in their order."""
    header, offset = {}, 0
    for name, (dtype, shape) in shapes.items():
        size = {"F32": 4, "F16": 2, "BF16": 2}[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded, offset


def _write_texts(folder: Path, config: Mapping[str, Any], tokenizer: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for path in (TOKENIZERS / tokenizer).iterdir():
        shutil.copy(path, folder)
