"""What config.json says of a decoder, as one frozen record. Defaults are those of the transformers config classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_export.errors import CheckpointError

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")

_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu"}


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base wavelength and the scaling rule ("default", "linear", "llama3")."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def inverse_frequencies(self, head_dim: int) -> NDArray[np.float32]:
        """[head_dim / 2] angles per position, by the rules of transformers' modeling_rope_utils, correctly rounded."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
        frequencies: NDArray[np.float32] = np.power(self.theta, -exponents).astype(np.float32)
        if self.kind == "linear":
            frequencies = frequencies / np.float32(self.factor)
        elif self.kind == "llama3":
            frequencies = self._smoothed(frequencies)
        return frequencies

    def _smoothed(self, frequencies: NDArray[np.float32]) -> NDArray[np.float32]:
        """Llama 3.1's rule: long wavelengths are stretched by `factor`, short ones kept, the middle interpolated."""
        context = np.float32(self.original_max_position_embeddings)
        factor, low, high = (np.float32(x) for x in (self.factor, self.low_freq_factor, self.high_freq_factor))
        wavelengths = np.float32(2 * math.pi) / frequencies
        stretched = np.where(wavelengths > context / low, frequencies / factor, frequencies)
        smooth = (context / wavelengths - low) / (high - low)
        interpolated = (1 - smooth) * stretched / factor + smooth * stretched
        medium = (wavelengths >= context / high) & (wavelengths <= context / low)
        smoothed: NDArray[np.float32] = np.where(medium, interpolated, stretched)
        return smoothed


@dataclass(frozen=True)
class DecoderConfig:
    """The options in which llama, mistral, qwen2, qwen3, gemma and gemma2 differ.

    windows: per layer, how many keys up to and including itself a position sees; None = all.
    softcap: attention scores become softcap * tanh(score / softcap); None = off (gemma2).
    scale: factor on the attention scores. embedding_scale: factor on the embeddings (gemma: sqrt(hidden)).
    norm_offset: added to every RMSNorm weight (gemma: 1). qk_norm: RMSNorm per head on q and k (qwen3).
    post_norms: extra norms after attention and MLP (gemma2).
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: Rope
    activation: str
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    windows: tuple[int | None, ...]
    softcap: float | None
    scale: float
    embedding_scale: float | None
    norm_offset: float
    qk_norm: bool
    post_norms: bool

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Read config.json (of transformers 4 or 5). Raises CheckpointError for what this decoder does not do."""
        model_type = config.get("model_type")
        if model_type not in MODEL_TYPES:
            raise CheckpointError(
                f"config.json: model_type {model_type!r} is not a supported decoder ({', '.join(MODEL_TYPES)})"
            )
        if config.get("quantization_config"):
            raise CheckpointError("config.json has a quantization_config; export from the unquantised checkpoint")
        gemma = model_type in ("gemma", "gemma2")
        hidden = _integer(config, "hidden_size")
        heads = _integer(config, "num_attention_heads")
        default_kv = {"mistral": 8}.get(model_type, heads)
        head_dim = int(config.get("head_dim") or (256 if gemma else {"qwen3": 128}.get(model_type, hidden // heads)))
        layers = _integer(config, "num_hidden_layers")
        attention_bias = bool(config.get("attention_bias", False))
        scale_base = config.get("query_pre_attn_scalar", 256) if model_type == "gemma2" else head_dim
        return cls(
            model_type=model_type,
            hidden_size=hidden,
            intermediate_size=_integer(config, "intermediate_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or default_kv),
            head_dim=head_dim,
            vocab_size=_integer(config, "vocab_size"),
            max_position_embeddings=int(config.get("max_position_embeddings", 2048)),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope=_rope(config),
            activation=_activation(config, gemma),
            qkv_bias=True if model_type == "qwen2" else attention_bias,
            output_bias=False if model_type == "qwen2" else attention_bias,
            mlp_bias=bool(config.get("mlp_bias", False)) if model_type == "llama" else False,
            windows=_windows(config, model_type, layers),
            softcap=config.get("attn_logit_softcapping", 50.0) if model_type == "gemma2" else None,
            scale=float(scale_base) ** -0.5,
            embedding_scale=float(hidden) ** 0.5 if gemma else None,
            norm_offset=1.0 if gemma else 0.0,
            qk_norm=model_type == "qwen3",
            post_norms=model_type == "gemma2",
        )

    def summary(self) -> dict[str, int | str]:
        """What the manifest tells of the backbone."""
        names = (
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "vocab_size",
        )
        return {"model_type": self.model_type, **{name: getattr(self, name) for name in names}}


def _integer(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value <= 0:
        raise CheckpointError(f"config.json: {key} is {value!r}, a positive integer is needed")
    return value


def _activation(config: Mapping[str, Any], gemma: bool) -> str:
    # Gemma 1 configs say "gelu" or nothing and mean the tanh form; hidden_activation overrides.
    name = config.get("hidden_activation") if gemma else config.get("hidden_act", "silu")
    if gemma and name is None:
        return "gelu_tanh"
    activation = _ACTIVATIONS.get(str(name))
    if activation is None:
        raise CheckpointError(f"config.json: activation {name!r} is not supported ({', '.join(_ACTIVATIONS)})")
    return activation


def _rope(config: Mapping[str, Any]) -> Rope:
    # transformers 5 writes rope_parameters; transformers 4 wrote rope_theta and rope_scaling.
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
    if kind not in ("default", "linear", "llama3"):
        raise CheckpointError(f"config.json: rope scaling {kind!r} is not supported (default, linear, llama3)")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError("config.json: partial_rotary_factor other than 1 is not supported")
    return Rope(
        theta=theta,
        kind=kind,
        factor=float(parameters.get("factor", 1.0)),
        low_freq_factor=float(parameters.get("low_freq_factor", 1.0)),
        high_freq_factor=float(parameters.get("high_freq_factor", 4.0)),
        original_max_position_embeddings=int(
            parameters.get("original_max_position_embeddings") or config.get("max_position_embeddings") or 8192
        ),
    )


def _windows(config: Mapping[str, Any], model_type: str, layers: int) -> tuple[int | None, ...]:
    # Each rule is the one of the model type's configuration class in transformers 5.
    window = config.get("sliding_window", 4096)
    window = None if window is None else int(window)
    if model_type == "mistral":
        return (window,) * layers
    if model_type in ("qwen2", "qwen3"):
        if not config.get("use_sliding_window", False) or window is None:
            return (None,) * layers
        first = int(config.get("max_window_layers", 28))
        types = config.get("layer_types") or [
            "sliding_attention" if layer >= first else "full_attention" for layer in range(layers)
        ]
    elif model_type == "gemma2":
        types = config.get("layer_types") or [
            "full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)
        ]
    else:
        return (None,) * layers
    if len(types) != layers:
        raise CheckpointError(f"config.json: layer_types has {len(types)} entries for {layers} layers")
    return tuple(window if kind == "sliding_attention" else None for kind in types)
