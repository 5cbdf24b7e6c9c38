"""Runs stages in ONNX Runtime: batches of rows go through one layer after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rm_export.errors import ExportError
from rm_export.stages import Stage, StageModel, lookups, split_stages, stage_model
from rm_export.tensors import StreamedTensor, pick_rows
from rm_runtime.batching import pad_rows, plan_batches

Array = NDArray[Any]
State = dict[str, Array]
"""What flows between stages for one batch: value name -> array."""

Outputs = dict[str, NDArray[np.float32]]

BATCH_TOKENS = 2048
"""Ids that run together: enough for full matrix products, little memory."""


class StageRunner:
    """Compiles stages; layers of one shape share one session, because their weights are inputs.

    folder: of the bundle whose graph is run, if its weights lie in a file there; the engine then maps them itself.
    """

    def __init__(self, threads: int | None = None, folder: Path | None = None) -> None:
        self._threads = threads
        self._folder = folder
        self._sessions: dict[bytes, Any] = {}

    def open(self, stage: Stage) -> LoadedStage:
        """The stage with its weights in memory. Raises ExportError if no engine is installed."""
        written = stage_model(stage)
        weights = {
            name: value.const_value.numpy()
            for name, value in zip(written.inputs[len(stage.inputs) :], stage.weights, strict=True)
            if value.const_value is not None
        }
        session = self.compiled(written) if self._folder is None else self._session(written, written.serialised())
        return LoadedStage(stage, session, written.inputs[: len(stage.inputs)], written.outputs, weights)

    def compiled(self, written: StageModel) -> Any:
        """An ONNX Runtime session of a stage's model, kept for the next stage with the same model."""
        content = written.serialised()
        if content not in self._sessions:
            self._sessions[content] = self._session(written, content)
        return self._sessions[content]

    def _session(self, written: StageModel, content: bytes) -> Any:
        try:
            import onnxruntime
        except ImportError:
            raise ExportError("calibration runs the model with onnxruntime; pip install 'rm-export[cpu]'") from None
        from rm_runtime.engines.cores import usable_cores

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or usable_cores()
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # batches of ever other shapes would leave it full of holes
        # Weight-only DequantizeLinear as it is written: the default rounds activations to int8 too (engines differ).
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if any(value.dtype == ir.DataType.FLOAT8E4M3FN for value in written.model.graph.initializers.values()):
            # its fusions into integer products take float8 for int8 where float32 is around it (onnxruntime#22269)
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if self._folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._folder))
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class LoadedStage:
    """A stage ready to run on batch after batch."""

    stage: Stage
    session: Any
    inputs: Sequence[str]
    outputs: Sequence[str]
    weights: Mapping[str, Array]

    def weight(self, value: ir.Value) -> Array:
        """One of the stage's weights, in memory."""
        return self.weights[self.weight_input(value)]

    def weight_input(self, value: ir.Value) -> str:
        """What the stage's model calls one of its weights."""
        return f"in{len(self.stage.inputs) + self.stage.weights.index(value)}"

    def feeds(self, state: State) -> dict[str, Array]:
        """What flows in, as the session wants it, weights included."""
        flowing = {name: state[str(value.name)] for name, value in zip(self.inputs, self.stage.inputs, strict=True)}
        return {**self.weights, **flowing}

    def run(self, state: State) -> State:
        """What flows in -> the stage's outputs, by name."""
        return self._run(state, self.stage.outputs)

    def run_with_taps(self, state: State) -> State:
        """What flows in -> the stage's outputs and taps, by name."""
        return self._run(state, (*self.stage.outputs, *self.stage.taps))

    def _run(self, state: State, values: Sequence[ir.Value]) -> State:
        if not values:
            return {}
        arrays = self.session.run(list(self.outputs[: len(values)]), self.feeds(state))
        return {str(value.name): array for value, array in zip(values, arrays, strict=True)}

    def after(self, state: State, results: State) -> State:
        """What flows on: the graph's inputs, the stage's outputs, and what something later still reads."""
        done = set(self.stage.nodes)
        over = {
            str(value.name)
            for value in self.stage.inputs
            if all(use.node in done for use in value.uses())
            and not value.is_graph_input()
            and not value.is_graph_output()
        }
        kept = {name: array for name, array in state.items() if name not in over}
        return kept | {str(value.name): results[str(value.name)] for value in self.stage.outputs}


def run_stages(
    model: ir.Model,
    rows: Sequence[NDArray[np.int64]],
    runner: StageRunner,
    on_stage: Callable[[int, int], None] | None = None,
) -> Outputs:
    """The graph's outputs for every row of ids, in order, one layer at a time. on_stage: told (stages done, stages)."""
    batches = plan_batches([len(row) for row in rows], BATCH_TOKENS)
    states = start(model, [[rows[place] for place in batch] for batch in batches])
    stages = split_stages(model)
    for done, stage in enumerate(stages, start=1):
        loaded = runner.open(stage)
        for place, state in enumerate(states):
            states[place] = loaded.after(state, loaded.run(state))
        if on_stage is not None:
            on_stage(done, len(stages))
    return collect(model, states, batches)


def start(model: ir.Model, batches: Sequence[Sequence[NDArray[np.int64]]]) -> list[State]:
    """The graph's inputs, and what its tables say of the ids, for every batch of rows; rows are padded on the right."""
    padded = [pad_rows(rows, pad_token_id=0) for rows in batches]
    states = [{"input_ids": ids, "attention_mask": mask} for ids, mask in padded]
    for node in lookups(model.graph):
        table, ids, output = node.inputs[0], node.inputs[1], node.outputs[0]
        assert table is not None
        assert ids is not None
        assert table.const_value is not None
        wanted = np.unique(np.concatenate([state[str(ids.name)].ravel() for state in states]))
        found = _table_rows(table.const_value, wanted)
        for state in states:
            state[str(output.name)] = found[np.searchsorted(wanted, state[str(ids.name)])]
    return states


def collect(model: ir.Model, states: Sequence[State], batches: Sequence[Sequence[int]]) -> Outputs:
    """The graph's outputs after the last stage: name -> [rows, ...], row i the one that a batch calls i."""
    order = np.argsort(np.concatenate([np.asarray(batch) for batch in batches]))
    names = [str(value.name) for value in model.graph.outputs]
    return {name: np.concatenate([state[name] for state in states]).astype(np.float32)[order] for name in names}


def _table_rows(table: ir.TensorProtocol, wanted: NDArray[np.int64]) -> Array:
    if isinstance(table, StreamedTensor):
        return pick_rows(table, wanted.tolist()).numpy()
    rows: Array = table.numpy()[wanted]
    return rows
