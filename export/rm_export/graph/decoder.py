"""One decoder for llama, mistral, qwen2, qwen3, gemma and gemma2.

Rows are right-padded and attention is causal, so no position ever sees padding and no padding mask is needed: the
score of a row does not depend on what it is batched with (docs/architecture.md, "Padding"). How the rows' tokens lie in
the matrices, each row in full or behind a prefix that they share, is graph/context.py's. The decoder returns the hidden
states of the requested positions only; behind the last layer's attention nothing else is computed.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from rm_export.graph.context import Layout, layout_of
from rm_export.graph.decoder_config import DecoderConfig
from rm_export.graph.module import Float32Module, Linear, Module, Op, Value, Weight
from rm_export.graph.rows import Rows
from rm_export.tensors import Mapped, StreamedTensor, to_float32


class RMSNorm(Float32Module):
    """x / sqrt(mean(x^2) + eps) * (weight + offset), over the last axis, in float32."""

    def __init__(self, size: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.eps = eps

        def shifted(weight: StreamedTensor) -> StreamedTensor:
            return Mapped(weight, lambda piece: to_float32(piece) + np.float32(offset), ir.DataType.FLOAT)

        self.weight = Weight([size], transform=shifted if offset else None)

    def forward(self, op: Op, x: Value) -> Value:
        """x [..., size] -> [..., size]."""
        return op.RMSNormalization(x, self.weight, axis=-1, epsilon=self.eps)


class Embedding(Module):
    """Rows of the embedding table, times a constant where the model has one (gemma)."""

    def __init__(self, vocab_size: int, hidden_size: int, scale: float | None) -> None:
        super().__init__()
        self.scale = scale
        self.weight = Weight([vocab_size, hidden_size])

    def forward(self, op: Op, input_ids: Value) -> Value:
        """input_ids [batch, sequence] -> [batch, sequence, hidden_size]."""
        rows = op.Gather(self.weight, input_ids, axis=0)
        return rows if self.scale is None else op.Mul(rows, self.scale)


class RotaryTables(Float32Module):
    """cos and sin of position * inverse frequency, made in the graph in float32: no table, no length limit."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.frequencies = config.rope.inverse_frequencies(config.head_dim)

    def forward(self, op: Op, positions: Value) -> tuple[Value, Value]:
        """positions [tokens] int64 -> cos, sin, each [tokens, head_dim / 2]."""
        frequencies = op.initializer(ir.tensor(self.frequencies[None, :]), name="inverse_frequencies")
        angles = op.Mul(op.Unsqueeze(op.Cast(positions, to=ir.DataType.FLOAT), [1]), frequencies)
        return op.Cos(angles), op.Sin(angles)


class Attention(Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig, window: int | None) -> None:
        super().__init__()
        self.config = config
        self.window = window
        queries = config.num_heads * config.head_dim
        keys = config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, queries, config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, keys, config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, keys, config.qkv_bias)
        self.o_proj = Linear(queries, config.hidden_size, config.output_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.capped = CappedAttention(config, config.softcap) if config.softcap else None

    def forward(self, op: Op, x: Value, layout: Layout, at: Value | None) -> Value:
        """x [batch, sequence, hidden] -> the same shape, or [batch, k, hidden] at positions `at` [batch, k]."""
        config = self.config
        query = self._rotated(op, self.q_proj(op, x), self.q_norm, config.num_heads, layout)
        key = self._rotated(op, self.k_proj(op, x), self.k_norm, config.num_kv_heads, layout)
        value = self.v_proj(op, x)
        masked = self.capped is not None
        attended = layout.attended(op, self._attend, query, key, value, self.window, masked)
        return self.o_proj(op, attended if at is None else layout.states_at(op, attended, at))

    def _attend(self, op: Op, query: Value, key: Value, value: Value, visible: Value | None) -> Value:
        if self.capped is not None:
            return self.capped(op, query, key, value, visible)
        return op.Attention(
            query,
            key,
            value,
            visible,
            is_causal=int(visible is None),
            q_num_heads=self.config.num_heads,
            kv_num_heads=self.config.num_kv_heads,
            scale=self.config.scale,
            softmax_precision=ir.DataType.FLOAT.value,
        )

    def _rotated(self, op: Op, x: Value, norm: RMSNorm | None, heads: int, layout: Layout) -> Value:
        if norm is not None:
            per_head = op.Reshape(x, [0, 0, heads, self.config.head_dim])
            x = op.Reshape(norm(op, per_head), [0, 0, heads * self.config.head_dim])
        return layout.rotated(op, x, heads)


class CappedAttention(Module):
    """Attention whose scores are soft-capped (gemma2), from plain operators.

    ONNX Runtime runs Attention with its softcap attribute many times slower on the CPU than this form, and
    TensorRT does not parse it (docs/performance.md).
    """

    def __init__(self, config: DecoderConfig, softcap: float) -> None:
        super().__init__()
        self.kv_heads = config.num_kv_heads
        self.groups = config.num_heads // config.num_kv_heads
        self.head_dim = config.head_dim
        self.scale = config.scale
        self.probabilities = CappedSoftmax(softcap)

    def forward(self, op: Op, query: Value, key: Value, value: Value, visible: Value) -> Value:
        """query [batch, queries, heads * head_dim], key, value [batch, keys, kv_heads * head_dim] -> as query."""
        query = self._heads(op, op.Mul(query, self.scale), self.groups, perm=[0, 2, 3, 1, 4])
        key = self._heads(op, key, 1, perm=[0, 2, 3, 4, 1])
        value = self._heads(op, value, 1, perm=[0, 2, 3, 1, 4])
        attended = op.MatMul(self.probabilities(op, op.MatMul(query, key), visible), value)
        joined = op.Transpose(attended, perm=[0, 3, 1, 2, 4])
        return op.Reshape(joined, [0, 0, self.kv_heads * self.groups * self.head_dim])

    def _heads(self, op: Op, x: Value, groups: int, perm: list[int]) -> Value:
        return op.Transpose(op.Reshape(x, [0, 0, self.kv_heads, groups, self.head_dim]), perm=perm)


class CappedSoftmax(Float32Module):
    """softmax(softcap * tanh(scores / softcap)) over the visible keys, in float32."""

    def __init__(self, softcap: float) -> None:
        super().__init__()
        self.softcap = softcap

    def forward(self, op: Op, scores: Value, visible: Value) -> Value:
        """scores [batch, kv_heads, groups, queries, keys], visible [queries, keys] bool -> as scores."""
        capped = op.Mul(op.Tanh(op.Mul(scores, 1 / self.softcap)), self.softcap)
        return op.Softmax(op.Where(visible, capped, -math.inf), axis=-1)


class MLP(Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, config.mlp_bias)

    def forward(self, op: Op, x: Value) -> Value:
        """x [..., hidden] -> [..., hidden]."""
        gate = self.gate_proj(op, x)
        if self.activation == "silu":
            activated = op.Mul(gate, op.Sigmoid(gate))
        else:
            activated = op.Gelu(gate, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        return self.down_proj(op, op.Mul(activated, self.up_proj(op, x)))


class DecoderLayer(Module):
    """Attention and MLP, each around a residual; gemma2 norms their outputs too."""

    def __init__(self, config: DecoderConfig, window: int | None) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_offset)

        self.input_layernorm = norm()
        self.self_attn = Attention(config, window)
        self.post_attention_layernorm = norm()
        self.mlp = MLP(config)
        self.post_norms = config.post_norms
        if config.post_norms:
            self.pre_feedforward_layernorm = norm()
            self.post_feedforward_layernorm = norm()

    def forward(self, op: Op, x: Value, layout: Layout, at: Value | None = None) -> Value:
        """x [batch, sequence, hidden] -> the same shape, or [batch, k, hidden] at positions `at` [batch, k]."""
        attended = self.self_attn(op, self.input_layernorm(op, x), layout, at)
        if at is not None:
            x = layout.states_at(op, x, at)
        if not self.post_norms:
            x = op.Add(x, attended)
            return op.Add(x, self.mlp(op, self.post_attention_layernorm(op, x)))
        x = op.Add(x, self.post_attention_layernorm(op, attended))
        fed = self.mlp(op, self.pre_feedforward_layernorm(op, x))
        return op.Add(x, self.post_feedforward_layernorm(op, fed))


class Decoder(Module):
    """Token ids -> normed hidden states at the positions a head reads. Tensor names: model.* of the checkpoint."""

    def __init__(self, config: DecoderConfig, max_length: int) -> None:
        """max_length: the longest row that will be fed; a window that is no shorter is no window."""
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, config.embedding_scale)
        self.rotary = RotaryTables(config)
        windows = [window if window is not None and window < max_length else None for window in config.windows]
        self.layers = nn.ModuleList([DecoderLayer(config, window) for window in windows])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_offset)

    def forward(self, op: Op, rows: Rows, at: Value) -> Value:
        """rows, at [batch, k] positions in them -> [batch, k, hidden] after the final norm."""
        layout = layout_of(op, rows, self.rotary)
        x = self.embed_tokens(op, layout.input_ids)
        last = len(self.layers) - 1
        for place, layer in enumerate(self.layers):
            x = layer(op, x, layout, at if place == last else None)
        return self.norm(op, x)
