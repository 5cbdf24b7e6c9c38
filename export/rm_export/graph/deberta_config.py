"""A DeBERTa-v2/v3 config.json read into one frozen record, and its buckets of relative distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_export.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True)
class DebertaConfig:
    """What the encoder needs.

    relative_span: relative embeddings on each side of distance 0 (position_buckets, or without buckets
    max_relative_positions). position_buckets: 0 for none. max_relative_positions: the scale of log buckets.
    content_to_position, position_to_content: which disentangled terms are added ("c2p", "p2c").
    share_att_key: the layer's query and key projections serve the positions, too.
    norm_relative: LayerNorm over rel_embeddings.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    layer_norm_eps: float
    relative_span: int
    position_buckets: int
    max_relative_positions: int
    content_to_position: bool
    position_to_content: bool
    share_att_key: bool
    norm_relative: bool

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], vocab_size: int | None = None) -> DebertaConfig:
        """Read config.json; vocab_size overrules its own. Defaults are those of transformers' modeling code.

        Raises CheckpointError for what this encoder does not do.
        """
        if config.get("model_type") != "deberta-v2":
            raise CheckpointError(f"config.json: model_type {config.get('model_type')!r} is not deberta-v2")
        if config.get("quantization_config"):
            raise CheckpointError("config.json has a quantization_config; export the unquantised checkpoint")
        hidden = _positive(config, "hidden_size", 1536)
        heads = _positive(config, "num_attention_heads", 24)
        _refuse_unsupported(config, hidden, heads)
        terms = _attention_terms(config)
        buckets = max(0, int(config.get("position_buckets", -1)))
        reach = int(config.get("max_relative_positions", -1))
        if reach < 1:
            reach = _positive(config, "max_position_embeddings", 512)
        if buckets and (buckets < 4 or reach - 1 <= buckets // 2):
            raise CheckpointError(f"config.json: {buckets} position_buckets do not fit distances up to {reach}")
        return cls(
            hidden_size=hidden,
            intermediate_size=_positive(config, "intermediate_size", 6144),
            num_layers=_positive(config, "num_hidden_layers", 24),
            num_heads=heads,
            vocab_size=vocab_size or _positive(config, "vocab_size", 128100),
            layer_norm_eps=float(config.get("layer_norm_eps", 1e-7)),
            relative_span=buckets or reach,
            position_buckets=buckets,
            max_relative_positions=reach,
            content_to_position="c2p" in terms,
            position_to_content="p2c" in terms,
            share_att_key=bool(config.get("share_att_key", False)),
            norm_relative="layer_norm" in _words(config.get("norm_rel_ebd", "none")),
        )

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def attention_scale(self) -> float:
        """1 / sqrt(terms * head_dim); content, c2p and p2c each count as a term."""
        terms = 1 + int(self.content_to_position) + int(self.position_to_content)
        return float((terms * self.head_dim) ** -0.5)

    def distance_table(self) -> NDArray[np.int64]:
        """Row of rel_embeddings for the distances -n .. n; beyond n it no longer changes.

        [2n + 1] int64, values 0 .. 2 * relative_span - 1.
        """
        reach = self.max_relative_positions
        while self._bucket(np.array([reach]))[0] < self.relative_span:
            reach *= 2
        distances = self._bucket(np.arange(-reach, reach + 1))
        return np.clip(distances + self.relative_span, 0, 2 * self.relative_span - 1)

    def _bucket(self, distances: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self.position_buckets:
            return distances
        return log_buckets(distances, self.position_buckets, self.max_relative_positions)

    def summary(self) -> dict[str, int | str]:
        """What the manifest tells of the backbone."""
        names = ("hidden_size", "num_layers", "num_heads", "head_dim", "intermediate_size", "vocab_size")
        return {"model_type": "deberta-v2", **{name: getattr(self, name) for name in names}}


def log_buckets(distances: NDArray[np.int64], buckets: int, max_position: int) -> NDArray[np.int64]:
    """transformers' make_log_bucket_position: distances up to half the buckets are exact, others log-spaced.

    distances: any shape, int64. All arithmetic is rounded to float32 before the ceiling, as in the reference:
    exact arithmetic would put a few distances into the neighbouring bucket.
    """
    middle = buckets // 2
    far = np.maximum(np.abs(distances), middle)
    steps = _log(far / middle) / _log(np.array((max_position - 1) / middle)) * np.float32(middle - 1)
    bucket = np.ceil(steps).astype(np.int64) + middle
    return np.where(np.abs(distances) <= middle, distances, bucket * np.sign(distances))


def _log(ratio: NDArray[np.float64]) -> NDArray[np.float32]:
    """Correctly rounded log of float32 values; numpy's own may differ in the last bit between CPUs."""
    exact = np.log(ratio.astype(np.float32).astype(np.float64))
    return np.asarray(exact, np.float32)


def _positive(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or value <= 0:
        raise CheckpointError(f"config.json: {key} is {value!r}, a positive integer is needed")
    return value


def _words(value: Any) -> list[str]:
    """ "p2c|c2p" or ["p2c", "c2p"] -> ["p2c", "c2p"]."""
    parts = value.lower().split("|") if isinstance(value, str) else value or []
    return [str(part).strip() for part in parts]


def _attention_terms(config: Mapping[str, Any]) -> list[str]:
    terms = [term for term in _words(config.get("pos_att_type")) if term]
    unknown = sorted(set(terms) - {"c2p", "p2c"})
    if unknown:
        raise CheckpointError(f"config.json: pos_att_type {unknown[0]!r} is not supported (c2p, p2c)")
    if not terms:
        raise CheckpointError("config.json: pos_att_type names neither c2p nor p2c, one is needed")
    return terms


def _refuse_unsupported(config: Mapping[str, Any], hidden: int, heads: int) -> None:
    needed = {
        "relative_attention": (bool(config.get("relative_attention", False)), True),
        "position_biased_input": (bool(config.get("position_biased_input", True)), False),
        "type_vocab_size": (config.get("type_vocab_size", 0), 0),
        "conv_kernel_size": (config.get("conv_kernel_size", 0) or 0, 0),
        "embedding_size": (config.get("embedding_size", hidden), hidden),
        "attention_head_size": (config.get("attention_head_size", hidden // heads), hidden // heads),
        "hidden_act": (config.get("hidden_act", "gelu"), "gelu"),
    }
    for key, (value, supported) in needed.items():
        if value != supported:
            raise CheckpointError(f"config.json: {key} {value!r} is not supported, only {supported!r} is")
    if hidden % heads:
        raise CheckpointError(f"config.json: hidden_size {hidden} is not a multiple of {heads} heads")
