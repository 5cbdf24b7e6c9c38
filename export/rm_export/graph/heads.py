"""The small networks that turn hidden states into scores. All of them compute in float32."""

from __future__ import annotations

from onnxscript import nn

from rm_export.graph.module import Float32Linear, Float32Module, Op, Value, Weight


class ValueHead(Float32Module):
    """GRM's head: Linear, or num_layers x [Linear, ReLU] and a Linear. Source: GRM grm_utils.py (semantics 3.1)."""

    def __init__(self, hidden_size: int, layer_type: str, num_layers: int, num_neurons: int) -> None:
        super().__init__()
        self.summary: Float32Module
        if layer_type == "linear":
            self.summary = Float32Linear(hidden_size, 1, bias=True)
        else:
            self.summary = IndexedMLP(
                [hidden_size, *[num_neurons] * num_layers, 1], indices=range(0, 2 * num_layers + 1, 2)
            )

    def forward(self, op: Op, hidden: Value) -> Value:
        """hidden [batch, hidden_size] -> value [batch]."""
        return op.Squeeze(self.summary(op, hidden), [1])


class IndexedMLP(Float32Module):
    """Linear layers with ReLU between, none at the end; layer i is stored under the name indices[i]."""

    def __init__(self, sizes: list[int], indices: range) -> None:
        super().__init__()
        self.order = [str(index) for index in indices]
        for place, name in enumerate(self.order):
            setattr(self, name, Float32Linear(sizes[place], sizes[place + 1], bias=True))

    def forward(self, op: Op, x: Value) -> Value:
        """x [batch, sizes[0]] -> [batch, sizes[-1]]."""
        for place, name in enumerate(self.order):
            if place:
                x = op.Relu(x)
            x = getattr(self, name)(op, x)
        return x


class ContextPooler(Float32Module):
    """gelu(dense(x)), the exact gelu. Source: transformers' ContextPooler of DeBERTa-v2, its dropout off."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = Float32Linear(hidden_size, hidden_size, bias=True)

    def forward(self, op: Op, first: Value) -> Value:
        """first [batch, hidden_size], the states of the first tokens -> [batch, hidden_size]."""
        return op.Gelu(self.dense(op, first), approximate="none")


class GatingNetwork(Float32Module):
    """ArmoRM's gate: MLP, softmax(x / temperature), times logit_scale. Source: ArmoRM's modeling_custom.py."""

    def __init__(
        self, hidden_size: int, objectives: int, temperature: float, hidden_dim: int, hidden_layers: int
    ) -> None:
        super().__init__()
        self.temperature = temperature
        sizes = [hidden_size, *[hidden_dim] * hidden_layers, objectives]
        self.layers = nn.ModuleList([Float32Linear(sizes[i], sizes[i + 1], bias=True) for i in range(len(sizes) - 1)])
        self.logit_scale = Weight([1])

    def forward(self, op: Op, prompt: Value) -> Value:
        """prompt [batch, hidden_size], the hidden state at the gate token -> gating [batch, objectives]."""
        x = prompt
        for place, layer in enumerate(self.layers):
            if place:
                x = op.Relu(x)
            x = layer(op, x)
        return op.Mul(op.Softmax(op.Div(x, self.temperature), axis=1), self.logit_scale)
