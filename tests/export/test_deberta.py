"""The DeBERTa encoder against transformers' own, on random spread-out weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxscript import GraphBuilder

from checkpoints.weights import Weights
from rm_export.build import IR_VERSION, OPSET, build_model
from rm_export.checkpoint import read_tensors
from rm_export.errors import CheckpointError
from rm_export.families.plan import Plan
from rm_export.graph import rows as graph_rows
from rm_export.graph.deberta import Deberta
from rm_export.graph.deberta_config import DebertaConfig, log_buckets
from rm_export.graph.distances import Distances
from rm_export.graph.module import Op, Value
from rm_export.lowering import lower, target_for
from rm_export.tensors import FileTensor
from rm_runtime.prompt_spec import SegmentsPrompt

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TOLERANCE = 2e-5
"""Of float32 hidden states with deviation 1, over two layers and up to 2,048 summed keys; measured: 4e-6."""

Rows = NDArray[np.int64]

CONFIG: dict[str, Any] = {
    "model_type": "deberta-v2",
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "position_buckets": 256,
    "relative_attention": True,
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}


class AllStates(Deberta):
    """The encoder alone, as a graph with one output."""

    def forward(self, op: Op, rows: graph_rows.Rows) -> dict[str, Value]:  # type: ignore[override]
        return {"hidden": super().forward(op, rows.input_ids, rows.attention_mask)}


class ThreeStates(Deberta):
    """The encoder at positions 4, 0 and 2 of every row."""

    def forward(self, op: Op, rows: graph_rows.Rows) -> dict[str, Value]:  # type: ignore[override]
        batch = op.Concat(op.Slice(op.Shape(rows.input_ids), [0], [1]), [3], axis=0)
        at = op.Expand(op.Unsqueeze(op.Add([4, 0, 2], 0), [0]), batch)
        return {"hidden": super().forward(op, rows.input_ids, rows.attention_mask, at)}


def reference(**overrides: Any) -> Any:
    """transformers' encoder with weights that notice a wrong distance."""
    from transformers import DebertaV2Config, DebertaV2Model

    config = {key: value for key, value in (CONFIG | overrides).items() if key != "model_type"}
    model = DebertaV2Model(DebertaV2Config(**config)).eval()
    weights = Weights(0, "float32")
    for name, parameter in model.named_parameters():
        scale = 1.0 if "embed" in name else 1.3 * parameter.shape[-1] ** -0.5
        if parameter.ndim == 1:
            weights.normal(name, *parameter.shape, std=0.3, mean=float(name.endswith("LayerNorm.weight")))
        else:
            weights.normal(name, *parameter.shape, std=scale)
        parameter.data = torch.from_numpy(weights.tensors[name])
    return model


def graph(folder: Path, model: Any, root: type[Deberta] = AllStates, **overrides: Any) -> ir.Model:
    from safetensors.torch import save_file

    save_file(dict(model.state_dict()), folder / "model.safetensors")
    config = DebertaConfig.from_hf(CONFIG | overrides)
    plan = Plan(
        module=root(config, ""),
        outputs={"hidden": ("batch", "sequence", config.hidden_size)},
        tensors=read_tensors(folder),
        unused=lambda name: False,
        tokenizer_json="",
        pooling="",
        pad_token_id=0,
        prompt=SegmentsPrompt(),
        architecture={},
    )
    return build_model(plan, "tiny")


def run(model: ir.Model, ids: Rows, mask: Rows) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    (hidden,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    return np.asarray(hidden)


def states(model: Any, ids: Rows, mask: Rows) -> NDArray[np.float32]:
    with torch.inference_mode():
        hidden = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state
    return np.asarray(hidden)


def rows(length: int, batch: int = 2) -> tuple[Rows, Rows]:
    """Random ids; every row but the first ends in padding."""
    ids = np.random.default_rng(length).integers(1, 90, (batch, length))
    mask = np.ones_like(ids)
    for row in range(1, batch):
        mask[row, length - row * length // 3 :] = 0
    return ids, mask


@pytest.mark.parametrize("length", [1, 5, 130, 513, 2048])
def test_hidden_states_are_transformers_at_any_length(tmp_path: Path, length: int) -> None:
    model = reference()
    ids, mask = rows(length)
    error = run(graph(tmp_path, model), ids, mask) - states(model, ids, mask)
    assert np.abs(error[mask == 1]).max() < TOLERANCE


@pytest.mark.parametrize(
    "overrides",
    [
        {"share_att_key": False},
        {"pos_att_type": "c2p"},
        {"pos_att_type": ["p2c"]},
        {"norm_rel_ebd": "none"},
        {"position_buckets": -1, "max_position_embeddings": 64},
        {"position_buckets": 16, "max_relative_positions": 100},
    ],
    ids=str,
)
def test_every_variant_of_disentangled_attention_is_transformers(tmp_path: Path, overrides: dict[str, Any]) -> None:
    model = reference(**overrides)
    ids, mask = rows(150)
    error = run(graph(tmp_path, model, **overrides), ids, mask) - states(model, ids, mask)
    assert np.abs(error[mask == 1]).max() < TOLERANCE


@pytest.mark.parametrize(
    ("buckets", "longest"), [(256, 512), (32, 128), (128, 512), (320, 512), (64, 2048), (7, 300), (512, 4096)]
)
def test_every_distance_up_to_4096_falls_into_transformers_bucket(buckets: int, longest: int) -> None:
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distances = np.arange(-4096, 4097)
    expected = make_log_bucket_position(torch.from_numpy(distances), buckets, longest).long().numpy()
    assert (log_buckets(distances, buckets, longest) == expected).all()
    config = DebertaConfig.from_hf(CONFIG | {"position_buckets": buckets, "max_position_embeddings": longest})
    table = config.distance_table()
    reach = len(table) // 2
    read = table[distances.clip(-reach, reach) + reach]  # as the graph reads it
    assert (read == (expected + buckets).clip(0, 2 * buckets - 1)).all()


@pytest.mark.parametrize("length", [1, 2, 128, 129, 600])
def test_a_pair_reads_its_own_bucket_among_those_that_occur_at_the_length(length: int) -> None:
    config = DebertaConfig.from_hf(CONFIG)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="distances")
    builder = GraphBuilder(graph)
    distances = Distances(builder.op, builder.input("mask", ir.DataType.INT64, ["batch", "sequence"]), config)
    for name, value in (("first", distances.first), ("end", distances.end)):
        value.type = ir.TensorType(ir.DataType.INT64)
        builder.add_output(value, name)
    for name, value in (("of_query", distances.of_query), ("of_key", distances.of_key)):
        value.type = ir.TensorType(ir.DataType.INT32)
        builder.add_output(value, name)
    session = onnxruntime.InferenceSession(ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString())
    (first,), (end,), of_query, of_key = session.run(None, {"mask": np.ones((1, length), np.int64)})
    place = np.arange(length)
    span = config.relative_span
    bucket = log_buckets(place[:, None] - place, config.position_buckets, config.max_relative_positions) + span
    bucket = bucket.clip(0, 2 * span - 1)
    assert (first, end) == (bucket.min(), bucket.max() + 1)
    assert (of_query == place[:, None] * (end - first) + bucket - first).all()
    assert (of_key == place * (end - first) + bucket - first).all()


def test_only_the_states_at_given_positions_are_returned(tmp_path: Path) -> None:
    model = reference()
    ids, mask = rows(40, batch=3)
    chosen = run(graph(tmp_path, model, ThreeStates), ids, mask)
    assert np.abs(chosen - states(model, ids, mask)[:, [4, 0, 2]]).max() < TOLERANCE


def test_a_row_does_not_depend_on_the_padding_of_its_batch(tmp_path: Path) -> None:
    model = graph(tmp_path, reference())
    ids, _ = rows(20, batch=1)
    alone = run(model, ids, np.ones_like(ids))
    padding = np.random.default_rng(5).integers(0, 90, (1, 300))  # whatever ids it has
    wide = np.concatenate([ids, padding], axis=1)
    padded = run(model, wide, (np.arange(320)[None] < 20).astype(np.int64))
    assert np.abs(padded[:, :20] - alone).max() < TOLERANCE


def test_no_weight_is_read_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reference()
    with monkeypatch.context() as patched:
        patched.setattr(FileTensor, "blocks", lambda self: pytest.fail(f"{self.name} was read"))
        graph(tmp_path, model)


def test_norms_and_attention_stay_float32_in_float16(tmp_path: Path) -> None:
    model = reference()
    ids, mask = rows(60)
    lowered = lower(graph(tmp_path, model), "fp16", target_for("cpu", "fp16"))
    kept = [
        node
        for node in lowered.graph
        if "/distance_scores/" in (node.name or "") or node.op_type == "LayerNormalization"
    ]
    assert {"MatMul", "Gather", "LayerNormalization"} <= {node.op_type for node in kept}
    assert {node.outputs[0].dtype for node in kept} == {ir.DataType.FLOAT}
    attention = next(node for node in lowered.graph if node.op_type == "Attention")
    assert attention.outputs[0].dtype == ir.DataType.FLOAT
    products = {node.outputs[0].dtype for node in lowered.graph if "intermediate" in (node.name or "")}
    assert ir.DataType.FLOAT16 in products
    assert attention.attributes["softmax_precision"].as_int() == ir.DataType.FLOAT.value
    error = run(lowered, ids, mask) - states(model, ids, mask)
    assert np.abs(error[mask == 1]).max() < 0.1  # 2^-10 a rounding, over two layers of spread-out weights


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is not deberta-v2"),
        ({"conv_kernel_size": 3}, "conv_kernel_size 3 is not supported, only 0 is"),
        ({"position_biased_input": True}, "position_biased_input True is not supported"),
        ({"type_vocab_size": 2}, "type_vocab_size 2 is not supported"),
        ({"embedding_size": 16}, "embedding_size 16 is not supported, only 32 is"),
        ({"relative_attention": False}, "relative_attention False is not supported"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ({"pos_att_type": "p2p"}, "pos_att_type 'p2p' is not supported"),
        ({"pos_att_type": None}, "pos_att_type names neither c2p nor p2c"),
        ({"hidden_size": 33}, "hidden_size 33 is not a multiple of 2 heads"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two', a positive integer is needed"),
        ({"position_buckets": 2000}, "2000 position_buckets do not fit distances up to 512"),
        ({"quantization_config": {"bits": 8}}, "quantization_config"),
    ],
    ids=str,
)
def test_an_unsupported_config_is_refused_in_one_line(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        DebertaConfig.from_hf(CONFIG | overrides)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_too_few_relative_embeddings_are_refused(tmp_path: Path) -> None:
    model = reference(position_buckets=64)
    with pytest.raises(CheckpointError, match=r"rel_embeddings.weight' \[128, 32\]: 512 rows are needed"):
        graph(tmp_path, model)
