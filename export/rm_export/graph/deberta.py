"""The DeBERTa-v2/v3 encoder: BERT with disentangled attention and no absolute positions.

Attention scores are content-content, content-position (c2p) and position-content (p2c) products, the last two
with an embedding of the relative distance. What the reference recomputes in every forward - the distance
embeddings through LayerNorm and each layer's projections - is a constant per layer here. Rows are padded on
the right and padded keys masked, so a row's states do not depend on what it is batched with.
Source: transformers' modeling_deberta_v2.py (semantics.md 5.4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from rm_export.graph.distances import Distances, DistanceScores
from rm_export.graph.module import Float32Module, Linear, Module, Op, Value, Weight
from rm_export.graph.positions import gather_positions
from rm_export.tensors import Computed, StreamedTensor, to_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rm_export.graph.deberta_config import DebertaConfig


class LayerNorm(Float32Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = Weight([size])
        self.bias = Weight([size])

    def forward(self, op: Op, x: Value, residual: Value | None = None) -> Value:
        """x [..., size] (+ residual of the same shape, added first) -> [..., size]."""
        if residual is not None:
            x = op.Add(x, residual)
        return op.LayerNormalization(x, self.weight, self.bias, axis=-1, epsilon=self.eps)


class Table(Float32Module):
    """Rows of an embedding table."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.weight = Weight([rows, size])

    def forward(self, op: Op, ids: Value) -> Value:
        """ids [...] -> [..., size]."""
        return op.Gather(self.weight, ids, axis=0)


class Embeddings(Module):
    """Word embeddings and LayerNorm. The reference also zeroes padding here, which no token ever sees."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.word_embeddings = Table(config.vocab_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, op: Op, input_ids: Value) -> Value:
        """input_ids [batch, sequence] -> [batch, sequence, hidden]."""
        return self.LayerNorm(op, self.word_embeddings(op, input_ids))


class Projection(Linear):
    """A query, key or value projection, split into heads."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__(config.hidden_size, config.hidden_size, bias=True)
        self.heads, self.head_dim = config.num_heads, config.head_dim

    def forward(self, op: Op, x: Value) -> Value:
        """x [batch, sequence, hidden] -> [batch, heads, sequence, head_dim]."""
        split = op.Reshape(super().forward(op, x), [0, 0, self.heads, self.head_dim])
        return op.Transpose(split, perm=[0, 2, 1, 3])


class DisentangledSelfAttention(Float32Module):
    """softmax((Q K^T + Q PK[i - j]^T + PQ[i - j] K^T) * scale) V, with scale = 1 / sqrt(3 * head_dim).

    PK and PQ, the projected distance embeddings, are constants with the scale folded in. All of it stays float32 in
    every precision: with three rounded terms under one softmax, float16 scores were off by 2 % of their deviation.
    """

    def __init__(self, config: DebertaConfig, encoder: str) -> None:
        """encoder: where the checkpoint keeps the encoder, e.g. "pretrained_model.encoder"."""
        super().__init__()
        self.config = config
        self.query_proj = Projection(config)
        self.key_proj = Projection(config)
        self.value_proj = Projection(config)
        own = "" if config.share_att_key else "pos_"
        self.position_key = self.position_query = None
        if config.content_to_position:
            self.position_key = _position_weight(config, encoder, f"{own}key_proj")
        if config.position_to_content:
            self.position_query = _position_weight(config, encoder, f"{own}query_proj")
        self.distance_scores = DistanceScores(config.num_heads)

    def forward(self, op: Op, x: Value, distances: Distances) -> Value:
        """x [batch, sequence, hidden] -> [batch, sequence, hidden] before the output projection."""
        query, key, value = self.query_proj(op, x), self.key_proj(op, x), self.value_proj(op, x)
        bias = self.distance_scores(op, query, key, self.position_key, self.position_query, distances)
        attended = op.Attention(
            query,
            key,
            value,
            bias,
            scale=self.config.attention_scale,
            softmax_precision=ir.DataType.FLOAT.value,
        )
        return op.Reshape(op.Transpose(attended, perm=[0, 2, 1, 3]), [0, 0, self.config.hidden_size])


class ResidualOutput(Module):
    """LayerNorm(dense(x) + residual)."""

    def __init__(self, in_features: int, config: DebertaConfig) -> None:
        super().__init__()
        self.dense = Linear(in_features, config.hidden_size, bias=True)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, op: Op, x: Value, residual: Value) -> Value:
        """x [..., in_features], residual [..., hidden] -> [..., hidden]."""
        return self.LayerNorm(op, self.dense(op, x), residual)


class Intermediate(Module):
    """gelu(dense(x)), with the exact gelu."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.intermediate_size, bias=True)

    def forward(self, op: Op, x: Value) -> Value:
        """x [..., hidden] -> [..., intermediate]."""
        return op.Gelu(self.dense(op, x), approximate="none")


class AttentionBlock(Module):
    """Attention and its residual output."""

    def __init__(self, config: DebertaConfig, encoder: str) -> None:
        super().__init__()
        self.self = DisentangledSelfAttention(config, encoder)
        self.output = ResidualOutput(config.hidden_size, config)

    def forward(self, op: Op, x: Value, distances: Distances, at: Value | None) -> Value:
        """x [batch, sequence, hidden] -> the same, or [batch, k, hidden] at positions `at` [batch, k]."""
        attended = self.self(op, x, distances)
        if at is not None:
            attended, x = gather_positions(op, attended, at), gather_positions(op, x, at)
        return self.output(op, attended, x)


class Layer(Module):
    """One encoder layer, norms after the residuals."""

    def __init__(self, config: DebertaConfig, encoder: str) -> None:
        super().__init__()
        self.attention = AttentionBlock(config, encoder)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config.intermediate_size, config)

    def forward(self, op: Op, x: Value, distances: Distances, at: Value | None = None) -> Value:
        """x [batch, sequence, hidden] -> the same, or [batch, k, hidden] at positions `at` [batch, k]."""
        attended = self.attention(op, x, distances, at)
        return self.output(op, self.intermediate(op, attended), attended)


class Encoder(Module):
    """The layers. Their relative embeddings live in the layers' constants."""

    def __init__(self, config: DebertaConfig, path: str) -> None:
        super().__init__()
        self.layer = nn.ModuleList([Layer(config, path) for _ in range(config.num_layers)])

    def forward(self, op: Op, x: Value, distances: Distances, at: Value | None) -> Value:
        """x [batch, sequence, hidden] -> the last layer's states, at the positions `at` only if given."""
        last = len(self.layer) - 1
        for place, layer in enumerate(self.layer):
            x = layer(op, x, distances, at if place == last else None)
        return x


class Deberta(Module):
    """Token ids -> hidden states of the last layer. Tensor names: `path`.* of the checkpoint."""

    def __init__(self, config: DebertaConfig, path: str) -> None:
        """path: where the checkpoint keeps this model, e.g. "pretrained_model", or "" for its root."""
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config, f"{path}.encoder" if path else "encoder")

    def forward(self, op: Op, input_ids: Value, attention_mask: Value, at: Value | None = None) -> Value:
        """input_ids, attention_mask [batch, sequence], at [batch, k] positions -> [batch, k, hidden].

        Without `at`: all positions, [batch, sequence, hidden]; those of padding mean nothing.
        """
        distances = Distances(op, attention_mask, self.config)
        return self.encoder(op, self.embeddings(op, input_ids), distances, at)


def _position_weight(config: DebertaConfig, encoder: str, projection: str) -> Weight:
    """The distance embeddings, normed, projected and scaled: [heads, head_dim, 2 * relative_span]."""
    buckets, heads, size = 2 * config.relative_span, config.num_heads, config.head_dim
    shape = (heads, size, buckets)
    norm = [f"/{encoder}.LayerNorm.weight", f"/{encoder}.LayerNorm.bias"] if config.norm_relative else []
    sources = [f"/{encoder}.rel_embeddings.weight", f"{projection}.weight", f"{projection}.bias", *norm]

    def project(*tensors: StreamedTensor) -> StreamedTensor:
        table, weight, bias, *affine = tensors
        if table.dims[0] < buckets:
            raise ValueError(f"{buckets} rows are needed")

        def compute() -> NDArray[np.float32]:
            embeddings = to_float32(table.numpy())[:buckets]
            if affine:
                scale, offset = (to_float32(tensor.numpy()) for tensor in affine)
                embeddings = _normalised(embeddings, config.layer_norm_eps) * scale + offset
            projected = embeddings @ to_float32(weight.numpy()).T + to_float32(bias.numpy())
            projected *= np.float32(config.attention_scale)
            split = projected.reshape(buckets, heads, size)
            return np.ascontiguousarray(split.transpose(1, 2, 0))

        return Computed(compute, ir.DataType.FLOAT, shape, f"{encoder}.{projection}")

    return Weight(shape, transform=project, sources=sources)


def _normalised(x: NDArray[np.float32], eps: float) -> NDArray[np.float32]:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    normed: NDArray[np.float32] = centred / np.sqrt(variance + np.float32(eps))
    return normed
