"""A massive activation on the first token of every chat, built into a Llama without changing its scores.

Large decoders have it (Sun et al. 2024, "Massive Activations in Large Language Models"): an early MLP writes values a
thousand times the median into a few channels of the residual stream at the first token, the norms hand them to every
later product, and the last MLP takes them away. The first token sees only itself, so all of its activations are
constants, and what other tokens read of it, its keys and values, can be given back exactly:

- the residual stream is widened by channels that are zero at every other token; one carries the massive value;
- the query, key and value columns of that channel are solved so that the first token's queries, keys and values stay;
- each new channel is then turned by 45 degrees into an old one, so that no channel belongs to the first token alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]

ADDED = 64
"""Channels added to the residual stream and to each MLP: whole blocks of block-wise quantisers."""

GATE = 8.0
"""What the gate sees at the first token; silu(8) is 7.997."""


@dataclass(frozen=True)
class Typical:
    """Medians of |x| over ordinary tokens: residual stream, and the input of each layer's down_proj [layers]."""

    residual: float
    down: tuple[float, ...]


@dataclass(frozen=True)
class Massive:
    """A checkpoint with the massive token. channels: the two of the residual stream that carry it."""

    config: dict[str, Any]
    tensors: Tensors
    channels: tuple[int, int]


def add_massive_token(
    config: dict[str, Any], tensors: Tensors, heads: tuple[str, ...], typical: Typical, ratio: float
) -> Massive:
    """The same function with activations of `ratio` times the typical at the BOS token, in float32.

    tensors: a Llama's, without biases; changed ones are replaced. heads: weights [out, hidden] that read the final
    norm. The first layer's MLP writes the value, the last one's removes it.
    """
    wide = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    _fold_norms(wide, layers, heads)
    states = _lone_token(config, wide, config["bos_token_id"])
    _widen(config, wide, heads)
    norm = np.sqrt(hidden / (hidden + ADDED))  # of the wider mean of squares
    wider = {
        **config,
        "hidden_size": hidden + ADDED,
        "intermediate_size": config["intermediate_size"] + ADDED,
        "head_dim": config.get("head_dim") or hidden // config["num_attention_heads"],
        "rms_norm_eps": config["rms_norm_eps"] * norm**2,
    }
    for name in _norm_names(layers):
        wide[name] = np.full(hidden + ADDED, norm)
    embedding = wide["model.embed_tokens.weight"]
    embedding[config["bos_token_id"], hidden] = np.sqrt(np.mean(embedding[config["bos_token_id"], :hidden] ** 2))
    x = embedding[config["bos_token_id"]]
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        normed = _rms_norm(x, wide[f"{prefix}.input_layernorm.weight"], wider["rms_norm_eps"])
        for projection in ("q_proj", "k_proj", "v_proj"):
            weight = wide[f"{prefix}.self_attn.{projection}.weight"]
            weight[:, hidden] = (weight[:, :hidden] @ (states[layer] - normed[:hidden])) / normed[hidden]
        x = x + _attended(wider, wide, layer, normed)
        normed = _rms_norm(x, wide[f"{prefix}.post_attention_layernorm.weight"], wider["rms_norm_eps"])
        if layer in (0, layers - 1):
            gate, up, down = (wide[f"{prefix}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
            activation = ratio * typical.down[layer]
            written = ratio * typical.residual * np.sqrt(2) if layer == 0 else -x[hidden]
            gate[-1, hidden] = GATE / normed[hidden]
            up[-1, hidden] = activation / _silu(GATE) / normed[hidden]
            down[hidden, -1] = written / activation
        x = x + _mlp(wide, layer, normed)
    channels = _turn(wide, hidden, layers, heads)
    return Massive(wider, {name: tensor.astype(np.float32) for name, tensor in wide.items()}, channels)


def _fold_norms(wide: Tensors, layers: int, heads: tuple[str, ...]) -> None:
    """Norm weights into the products that read them."""
    for layer in range(layers):
        for norm, readers in _readers(layer).items():
            for reader in readers:
                wide[reader] = wide[reader] * wide[norm]
            wide[norm] = np.ones_like(wide[norm])
    for head in heads:
        wide[head] = wide[head] * wide["model.norm.weight"]
    wide["model.norm.weight"] = np.ones_like(wide["model.norm.weight"])


def _widen(config: dict[str, Any], wide: Tensors, heads: tuple[str, ...]) -> None:
    """Zeros for the new residual channels; each new MLP channel but the last takes over half of an old one."""
    columns, rows = [*heads, "model.embed_tokens.weight"], []
    for layer in range(config["num_hidden_layers"]):
        columns += [reader for readers in _readers(layer).values() for reader in readers]
        rows += [f"model.layers.{layer}.self_attn.o_proj.weight", f"model.layers.{layer}.mlp.down_proj.weight"]
    for name in columns:
        wide[name] = np.pad(wide[name], ((0, 0), (0, ADDED)))
    for name in rows:
        wide[name] = np.pad(wide[name], ((0, ADDED), (0, 0)))
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.mlp"
        halved = wide[f"{prefix}.down_proj.weight"].copy()
        halved[:, : ADDED - 1] /= 2
        free = np.zeros((len(halved), 1))
        wide[f"{prefix}.down_proj.weight"] = np.concatenate([halved, halved[:, : ADDED - 1], free], axis=1)
        for name in (f"{prefix}.gate_proj.weight", f"{prefix}.up_proj.weight"):
            wide[name] = np.concatenate([wide[name], wide[name][: ADDED - 1], np.zeros((1, wide[name].shape[1]))])


def _turn(wide: Tensors, hidden: int, layers: int, heads: tuple[str, ...]) -> tuple[int, int]:
    """Turn each new residual channel by 45 degrees into an old one, in place; the two that are now massive."""
    partners = np.random.default_rng(0).choice(hidden, size=ADDED, replace=False)
    turn = np.eye(hidden + ADDED)
    half = np.sqrt(0.5)
    for new, old in enumerate(partners, start=hidden):
        turn[[old, old, new, new], [old, new, old, new]] = half, half, half, -half
    readers = [reader for layer in range(layers) for names in _readers(layer).values() for reader in names]
    for name in ("model.embed_tokens.weight", *readers, *heads):
        wide[name] = wide[name] @ turn
    for layer in range(layers):
        for name in (f"model.layers.{layer}.self_attn.o_proj.weight", f"model.layers.{layer}.mlp.down_proj.weight"):
            wide[name] = turn @ wide[name]
    return int(partners[0]), hidden


def _lone_token(config: dict[str, Any], wide: Tensors, token: int) -> list[NDArray[np.float64]]:
    """What each layer's queries, keys and values read at a token that stands first: [layers] of [hidden]."""
    x, states = wide["model.embed_tokens.weight"][token], []
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        states.append(_rms_norm(x, wide[f"{prefix}.input_layernorm.weight"], config["rms_norm_eps"]))
        x = x + _attended(config, wide, layer, states[-1])
        x = x + _mlp(
            wide, layer, _rms_norm(x, wide[f"{prefix}.post_attention_layernorm.weight"], config["rms_norm_eps"])
        )
    return states


def _attended(config: dict[str, Any], wide: Tensors, layer: int, normed: NDArray[np.float64]) -> NDArray[np.float64]:
    """The attention of a token that sees only itself: its own value, one copy for each query head of the group."""
    prefix = f"model.layers.{layer}.self_attn"
    value = (wide[f"{prefix}.v_proj.weight"] @ normed).reshape(config["num_key_value_heads"], -1)
    groups = config["num_attention_heads"] // config["num_key_value_heads"]
    attended: NDArray[np.float64] = wide[f"{prefix}.o_proj.weight"] @ np.repeat(value, groups, axis=0).reshape(-1)
    return attended


def _mlp(wide: Tensors, layer: int, normed: NDArray[np.float64]) -> NDArray[np.float64]:
    gate, up, down = (wide[f"model.layers.{layer}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
    fed: NDArray[np.float64] = down @ (_silu(gate @ normed) * (up @ normed))
    return fed


def _silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def _rms_norm(x: NDArray[np.float64], weight: NDArray[np.float64], eps: float) -> NDArray[np.float64]:
    normed: NDArray[np.float64] = x / np.sqrt(np.mean(x * x) + eps) * weight
    return normed


def _readers(layer: int) -> dict[str, list[str]]:
    """Norm weight -> the weights that read it, of one layer."""
    prefix = f"model.layers.{layer}"
    return {
        f"{prefix}.input_layernorm.weight": [f"{prefix}.self_attn.{name}_proj.weight" for name in "qkv"],
        f"{prefix}.post_attention_layernorm.weight": [f"{prefix}.mlp.{name}_proj.weight" for name in ("gate", "up")],
    }


def _norm_names(layers: int) -> list[str]:
    return [norm for layer in range(layers) for norm in _readers(layer)] + ["model.norm.weight"]
