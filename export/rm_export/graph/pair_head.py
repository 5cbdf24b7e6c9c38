"""PairRM's head: one small network, applied to the source with each of two candidates."""

from __future__ import annotations

from rm_export.graph.module import Float32Linear, Float32Module, Op, Value


class PairHead(Float32Module):
    """Linear, Tanh, Linear over [source ; candidate]. Source: LLM-Blender ranker.py (semantics.md 5.4).

    The layers keep the numbers of the checkpoint's nn.Sequential; 0 and 3 are its dropouts.
    """

    def __init__(self, hidden_size: int, n_tasks: int) -> None:
        super().__init__()
        setattr(self, "1", Float32Linear(2 * hidden_size, hidden_size, bias=True))
        setattr(self, "4", Float32Linear(hidden_size, n_tasks, bias=True))

    def forward(self, op: Op, states: Value) -> Value:
        """states [batch, 3, hidden] of source, candidate 1, candidate 2 -> logit [batch].

        The logit is the mean over tasks of candidate 1's score minus candidate 2's: positive if 1 is better.
        """
        source = op.Slice(states, [0], [1], [1])
        candidates = op.Slice(states, [1], [3], [1])
        pairs = op.Concat(op.Concat(source, source, axis=1), candidates, axis=2)
        scores = getattr(self, "4")(op, op.Tanh(getattr(self, "1")(op, pairs)))
        left, right = op.Split(scores, axis=1, num_outputs=2, _outputs=2)
        return op.ReduceMean(op.Sub(left, right), [1, 2], keepdims=0)
