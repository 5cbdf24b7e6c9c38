"""The graph as a Triton model of its own, in the place of a bundle's engine (business logic scripting)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_runtime.batching import plan_batches, run_once_each
from rm_runtime.engines.protocol import Arrays
from rm_runtime.errors import EngineError
from rm_runtime.triton.lengths import padded_to_bucket

IN_FLIGHT = 8
"""Batches that one instance sends at once: enough for a server's GPUs, few enough that others get their turn."""


@dataclass(frozen=True)
class GraphRows:
    """Scores rows by asking the model `name` of the same server, several batches at once.

    outputs: their names. pad: id that rows are padded with, to the length of their bucket, so that Triton can join
    batches of several requests. longest: ids a row may have. batch_tokens, batch_rows: what one batch may hold.
    """

    name: str
    outputs: tuple[str, ...]
    pad: int
    longest: int
    batch_tokens: int
    batch_rows: int
    _senders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(IN_FLIGHT, "graph"), repr=False)

    def run_rows(self, rows: Sequence[NDArray[np.int64]]) -> Arrays:
        """As rm_runtime.batching.run_rows, equal rows once. Raises EngineError with what Triton said."""
        return run_once_each(rows, self._run) if rows else {}

    def _run(self, rows: Sequence[NDArray[np.int64]]) -> Arrays:
        batches = list(self._batches([len(row) for row in rows]))
        answers = self._senders.map(lambda batch: self._asked([rows[row] for row in batch]), batches)
        results: Arrays = {}
        for batch, answer in zip(batches, answers, strict=True):
            for name, array in answer.items():
                if name not in results:
                    results[name] = np.empty((len(rows), *array.shape[1:]), array.dtype)
                results[name][batch] = array
        return results

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        for batch in plan_batches(lengths, self.batch_tokens):
            for first in range(0, len(batch), self.batch_rows):
                yield batch[first : first + self.batch_rows]

    def _asked(self, rows: Sequence[NDArray[np.int64]]) -> Arrays:
        import triton_python_backend_utils as pb_utils

        ids, mask = padded_to_bucket(rows, self.pad, self.longest)
        inputs = [pb_utils.Tensor("input_ids", ids), pb_utils.Tensor("attention_mask", mask)]
        request = pb_utils.InferenceRequest(
            model_name=self.name, requested_output_names=list(self.outputs), inputs=inputs
        )
        answer: Any = request.exec()
        if answer.has_error():
            raise EngineError(f"{self.name}: {answer.error().message()}")
        tensors = {name: pb_utils.get_output_tensor_by_name(answer, name) for name in self.outputs}
        # copied: Triton takes a tensor's memory back together with its response
        return {
            name: tensor.as_numpy().reshape(len(rows), *tensor.shape()[1:]).copy() for name, tensor in tensors.items()
        }
