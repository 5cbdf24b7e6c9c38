"""The graph that computes a common prefix once scores as the plain graph does, for every causal family and backbone.

Tolerance, relative to the standard deviation of each output over 40 rows: 1e-5 in float32. The same numbers are added
up; only attention's sums over keys may be blocked otherwise. int8: no clear preference is turned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import checkpoints
from rm_calibration.comparison import compare_scores
from rm_calibration.conversations import default_conversations
from rm_export.build import build_model
from rm_export.bundle import INLINE_BYTES, write_second_graph
from rm_export.calibrate import CalibrationOptions
from rm_export.checkpoint import Checkpoint, open_checkpoint
from rm_export.errors import ExportError
from rm_export.exporter import export_checkpoint
from rm_export.families import family
from rm_export.lowering.gemms import find_fold, gemm_groups
from rm_export.options import Options
from rm_export.quantisation import Quantisation
from rm_runtime import load
from rm_runtime.batching import pad_rows, run_rows
from rm_runtime.bundle import Bundle, open_bundle
from rm_runtime.engines import Arrays, Engine, open_engine
from rm_runtime.engines.shared_prefix import SharedPrefixEngine

TOLERANCE = 1e-5
VOCABULARY = 80
"""Ids below this, and no special token, are ordinary text in every tiny vocabulary."""

QUANTISATION = Quantisation(
    examples=default_conversations()[:8],
    options=CalibrationOptions(observer="minmax", alphas=(0.5,), max_flip_rate=1.0, threads=1),
)


@dataclass(frozen=True)
class Exported:
    """A bundle, its plain graph, both graphs, and the deviation of each output over random rows."""

    bundle: Bundle
    plain: Engine
    both: Engine
    spread: dict[str, NDArray[np.float64]]


@pytest.fixture(scope="module", params=checkpoints.CAUSAL)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(checkpoints.CAUSAL[request.param](tmp_path_factory.mktemp("prefix") / "checkpoint"))


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return opened(checkpoint, tmp_path_factory.mktemp("bundles") / "fp32", "fp32")


@pytest.fixture(scope="module")
def quantised(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return opened(checkpoint, tmp_path_factory.mktemp("bundles") / "int8", "int8")


def opened(checkpoint: Checkpoint, folder: Path, precision: str, engine: str = "onnxruntime") -> Exported:
    bundle = open_bundle(export_checkpoint(checkpoint, folder, precision=precision, quantisation=QUANTISATION))
    plain = open_engine(bundle, engine, threads=1, share_prefixes=False)
    both = open_engine(bundle, engine, threads=1)
    assert isinstance(both, SharedPrefixEngine)
    rng = np.random.default_rng(1)
    rows = [with_gate(bundle, rng.integers(5, VOCABULARY, 10 + place)) for place in range(40)]
    outputs = run_rows(plain, rows, bundle.manifest.pad_token_id)
    return Exported(bundle, plain, both, {name: values.std(axis=0) for name, values in outputs.items()})


def with_gate(bundle: Bundle, row: NDArray[np.int64], at: int = 3) -> NDArray[np.int64]:
    """The row with ArmoRM's gate pattern put in, if the bundle has one."""
    return np.insert(row, at, bundle.manifest.parameters.get("gate_pattern", []))


def in_full(exported: Exported, rows: Sequence[NDArray[np.int64]]) -> Arrays:
    ids, mask = pad_rows(rows, exported.bundle.manifest.pad_token_id)
    return exported.plain.run({"input_ids": ids, "attention_mask": mask})


def shared(exported: Exported, rows: Sequence[NDArray[np.int64]], prefix: int) -> Arrays:
    ids, mask = pad_rows([row[prefix:] for row in rows], exported.bundle.manifest.pad_token_id)
    return exported.both.run({"input_ids": ids, "attention_mask": mask, "prefix_ids": rows[0][None, :prefix]})


def assert_equal_scores(exported: Exported, expected: Arrays, actual: Arrays) -> None:
    assert set(actual) == set(expected)
    for name, values in expected.items():
        assert np.array_equal(np.isnan(values), np.isnan(actual[name])), name
        error = np.nanmax(np.abs(values - actual[name]) / exported.spread[name], initial=0)
        assert error <= TOLERANCE, f"{name}: {error:.1e}"


GROUPS = st.tuples(st.integers(1, 60), st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
"""How many ids rows have in common, how many of their own, seed of the ids."""


def rows_in_groups(bundle: Bundle, groups: Sequence[tuple[int, list[int], int]]) -> list[NDArray[np.int64]]:
    """Rows that can be scored; those of a group begin alike."""
    rows = []
    for length, own, seed in groups:
        rng = np.random.default_rng(seed)
        before = with_gate(bundle, rng.integers(5, VOCABULARY, 40 + length))
        rows += [np.concatenate([before, rng.integers(5, VOCABULARY, count)]) for count in own]
    return rows


@given(GROUPS, st.sampled_from(["in common", "own", "none"]))
@settings(max_examples=15, deadline=None)
def test_scores_are_those_of_the_rows_in_full(exported: Exported, group: tuple[int, list[int], int], gate: str) -> None:
    common, own, seed = group
    rng = np.random.default_rng(seed)
    before = rng.integers(5, VOCABULARY, common)
    after = [rng.integers(5, VOCABULARY, count) for count in own]
    if gate == "in common":
        before = with_gate(exported.bundle, before, at=common // 2)
    elif gate == "own":
        after = [with_gate(exported.bundle, ids, at=len(ids) // 2) for ids in after]
    prefix = 1 + seed % len(before)  # a gate in common is before, across or behind the end of the prefix
    rows = [np.concatenate([before, ids]) for ids in after]
    assert_equal_scores(exported, in_full(exported, rows), shared(exported, rows, prefix))


@pytest.mark.parametrize("prefix", [1, 5, 9, 19])
def test_the_gate_token_may_be_before_across_or_behind_the_end_of_the_prefix(tmp_path: Path, prefix: int) -> None:
    exported = opened(open_checkpoint(checkpoints.armorm(tmp_path / "checkpoint")), tmp_path / "bundle", "fp32")
    before = with_gate(exported.bundle, np.arange(20, 40), at=4)
    rows = [np.concatenate([before, np.arange(40, 45 + answer)]) for answer in range(3)]
    expected = in_full(exported, rows)
    assert not np.isnan(expected["score"]).any()
    assert_equal_scores(exported, expected, shared(exported, rows, prefix))


@given(st.lists(GROUPS, min_size=1, max_size=3), st.integers(60, 600))
@settings(max_examples=6, deadline=None)
def test_requests_have_the_scores_of_the_plain_graph(
    exported: Exported, groups: list[tuple[int, list[int], int]], budget: int
) -> None:
    rows, pad = rows_in_groups(exported.bundle, groups), exported.bundle.manifest.pad_token_id
    one, other = (run_rows(engine, rows, pad, budget) for engine in (exported.plain, exported.both))
    assert not np.isnan(one["score"]).any()
    assert_equal_scores(exported, one, other)


@given(st.lists(GROUPS, min_size=1, max_size=3), st.integers(60, 600))
@settings(max_examples=6, deadline=None)
def test_int8_requests_flip_no_clear_preference(
    quantised: Exported, groups: list[tuple[int, list[int], int]], budget: int
) -> None:
    """Clear: beyond 0.1 deviations of the 40 rows' scores, as the budget of an export counts flips."""
    rows, pad = rows_in_groups(quantised.bundle, groups), quantised.bundle.manifest.pad_token_id
    one, other = (run_rows(engine, rows, pad, budget)["score"] for engine in (quantised.plain, quantised.both))
    margins, shared_margins = (scores[:, None] - scores for scores in (one, other))
    clear = np.abs(margins) > 0.1 * quantised.spread["score"]
    assert not (clear & (margins * shared_margins <= 0)).any()


def test_a_row_that_cannot_be_scored_is_nan_and_no_other_is(exported: Exported) -> None:
    prefix = with_gate(exported.bundle, np.arange(10, 30))[None]
    mask = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0]])
    outputs = exported.both.run(
        {"input_ids": np.full((4, 3), 9), "attention_mask": mask, "prefix_ids": prefix.astype(np.int64)}
    )
    for values in outputs.values():
        assert np.isnan(values).reshape(4, -1).all(axis=1).tolist() == [False, True, False, True]
        assert np.isnan(values).reshape(4, -1).any(axis=1).tolist() == [False, True, False, True]


def answers_to_prompts(bundle: Bundle) -> list[NDArray[np.int64]]:
    """Six prompts with eight answers each."""
    rng, rows = np.random.default_rng(2), []
    for _ in range(6):
        before = with_gate(bundle, rng.integers(5, VOCABULARY, 60))
        rows += [np.concatenate([before, rng.integers(5, VOCABULARY, 5 + 3 * answer)]) for answer in range(8)]
    return rows


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_int8_flips_no_clear_preference(checkpoint: Checkpoint, tmp_path: Path, engine: str) -> None:
    """Nor many others: products of other shapes round otherwise in float32, which moves a value across an int8 step."""
    exported = opened(checkpoint, tmp_path / "int8", "int8", engine)
    rows = answers_to_prompts(exported.bundle)
    pad = exported.bundle.manifest.pad_token_id
    one, other = (run_rows(of, rows, pad)["score"] for of in (exported.plain, exported.both))
    assert one.std() > 0.01
    order = compare_scores(one, other).order
    assert order.clear_pairs > 500
    assert order.clear_flips == 0
    assert order.rate <= 0.005


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "w8", "w4"])
def test_no_weight_is_written_twice(checkpoint: Checkpoint, tmp_path: Path, precision: str) -> None:
    bundle = open_bundle(
        export_checkpoint(checkpoint, tmp_path / "bundle", precision=precision, quantisation=QUANTISATION)
    )
    assert [name for name in bundle.manifest.files if name.endswith(".data")] == ["model.onnx.data"]
    tensors = [value.const_value for value in ir.load(bundle.graph_path("prefix")).graph.initializers.values()]
    large = [tensor for tensor in tensors if tensor is not None and tensor.nbytes >= INLINE_BYTES]
    assert large
    assert all(isinstance(tensor, ir.ExternalTensor) and tensor.location == "model.onnx.data" for tensor in large)


def test_smoothing_folds_into_the_same_weights_in_both_graphs(checkpoint: Checkpoint) -> None:
    def folds(shared_prefix: bool) -> dict[str, tuple[str, str | None, list[int] | None] | None]:
        chosen = next(
            one for one in map(family, ("armorm", "grm", "pair-pm", "dpa-rm", "scalar")) if one.recognises(checkpoint)
        )
        graph = build_model(chosen.plan(checkpoint, Options()), "tiny", shared_prefix).graph
        found = {name: find_fold(gemms[0].activation) for name, gemms in gemm_groups(graph).items()}
        return {
            name: fold and (fold.kind, fold.weight.name, None if fold.tied is None else fold.tied.tolist())
            for name, fold in found.items()
        }

    plain = folds(shared_prefix=False)
    assert {fold[0] for fold in plain.values() if fold} == {"norm", "columns"}
    assert folds(shared_prefix=True) == plain


def test_only_causal_bundles_for_engines_of_any_length_have_the_graph(tmp_path: Path) -> None:
    encoder = export_checkpoint(open_checkpoint(checkpoints.pairrm(tmp_path / "pairrm")), tmp_path / "encoder")
    assert set(open_bundle(encoder).manifest.graphs) == {"plain"}
    decoder = open_checkpoint(checkpoints.grm(tmp_path / "grm"))
    for target, roles in {"cpu": {"plain", "prefix"}, "tensorrt": {"plain", "prefix"}, "cuda": {"plain"}}.items():
        bundle = export_checkpoint(decoder, tmp_path / target, precision="fp16", target=target)
        assert set(open_bundle(bundle).manifest.graphs) == roles


def test_a_bundle_without_the_graph_scores_all_the_same(exported: Exported) -> None:
    manifest = dataclasses.replace(exported.bundle.manifest, graphs={"plain": "model.onnx"})
    older = open_engine(Bundle(exported.bundle.path, manifest), "onnxruntime", threads=1)
    rows, pad = answers_to_prompts(exported.bundle), manifest.pad_token_id
    expected = run_rows(exported.plain, rows, pad)
    assert all(np.array_equal(expected[name], values) for name, values in run_rows(older, rows, pad).items())


def test_a_second_graph_with_a_weight_of_its_own_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(checkpoints.grm(tmp_path / "checkpoint"))
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", precision="fp16")
    other = build_model(family("grm").plan(checkpoint, Options()), "tiny", shared_prefix=True)
    with pytest.raises(ExportError, match=r"other\.onnx reads the weight '.*', which model\.onnx does not hold"):
        write_second_graph(other, bundle, "other.onnx", "model.onnx")


def test_ranking_is_the_same_with_and_without_sharing(tmp_path: Path) -> None:
    bundle = export_checkpoint(open_checkpoint(checkpoints.grm(tmp_path / "checkpoint")), tmp_path / "bundle")
    prompt = [{"role": "user", "content": "Which of the two bridges was built first, and who paid for it? " * 3}]
    responses = ["The old one.", "Nobody knows who paid for the first bridge.", "Both at once.", "The city did."]
    one, other = (
        load(bundle, engine="onnxruntime", threads=1, share_prefixes=shares).rank(prompt, responses)
        for shares in (False, True)
    )
    assert one.ranks == other.ranks
    assert one.scores == pytest.approx(other.scores, rel=1e-5)
