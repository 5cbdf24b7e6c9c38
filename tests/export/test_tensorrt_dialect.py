"""The tensorrt dialect says what the cpu dialect says: their scores in ONNX Runtime, which runs both on a CPU.

float16: to 1e-2 standard deviations. int8: test_int8_dialects.py says what can be compared; here it is, for every
family and backbone, plain and behind a shared prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

import checkpoints
from graph_runs import observed_scales, run_graph, without_activation_rounding
from rm_calibration.comparison import compare_scores
from rm_export.build import build_model
from rm_export.checkpoint import Checkpoint, open_checkpoint
from rm_export.demo import checkpoint_path
from rm_export.demo.preferences import comparisons
from rm_export.families import family, recognise
from rm_export.families.plan import Plan
from rm_export.lowering import TARGETS, lower
from rm_export.lowering.gemms import find_gemms
from rm_export.lowering.quantise import Quantise
from rm_export.lowering.scales import RoundScales
from rm_export.options import Options
from rm_runtime.prompts import ChatPrompter

FLOAT16_TOLERANCE, FLOAT32_TOLERANCE = 1e-2, 1e-5
PREFIX = 15
ROLES = [*((name, role) for name in checkpoints.CAUSAL for role in ("plain", "prefix")), ("pairrm", "plain")]


@dataclass(frozen=True)
class Case:
    """A checkpoint's graph in one role, and rows of ids it can score."""

    build: Callable[[bool], ir.Model]
    shared_prefix: bool
    rows: Sequence[NDArray[np.int64]]

    def int8(self) -> ir.Model:
        model, scales = self.build(self.shared_prefix), observed_scales(self.build(False), self.rows)
        return Quantise(scales, frozenset(gemm.name for gemm in find_gemms(model.graph)))(model).model

    def lowered(self, precision: str, target: str) -> ir.Model:
        return lower(self.build(self.shared_prefix), precision, TARGETS[target])

    def scores(self, model: ir.Model, optimised: bool = True) -> NDArray[np.float64]:
        return self.outputs(model, optimised)["score"]

    def outputs(self, model: ir.Model, optimised: bool = True) -> dict[str, NDArray[np.float64]]:
        names = [str(value.name) for value in model.graph.outputs]
        cut = PREFIX if self.shared_prefix else 0
        feeds = [
            {"input_ids": row[None, cut:], "attention_mask": np.ones((1, len(row) - cut), np.int64)}
            | ({"prefix_ids": row[None, :cut]} if cut else {})
            for row in self.rows
        ]
        results = run_graph(model, feeds, names, optimised)
        return {
            name: np.array([result[place][0] for result in results], np.float64) for place, name in enumerate(names)
        }


@pytest.fixture(scope="module", params=ROLES, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, role = request.param
    make = checkpoints.CAUSAL.get(name, checkpoints.pairrm)
    checkpoint = open_checkpoint(make(tmp_path_factory.mktemp("dialect") / "checkpoint"))
    plan = recognise(checkpoint).plan
    gate = plan(checkpoint, Options()).parameters.get("gate_pattern", [])
    rng = np.random.default_rng(0)
    markers = [1040, 7, 1041, 8, 1042, 9] if name == "pairrm" else []
    rows = [
        np.concatenate([np.insert(rng.integers(5, 80, 20 + length), 12, gate), markers]).astype(np.int64)
        for length in (*range(60), *range(60), *range(60), *range(60))
    ]
    return Case(partial(built, plan, checkpoint), role == "prefix", rows)


def built(plan: Callable[[Checkpoint, Options], Plan], checkpoint: Checkpoint, shared_prefix: bool) -> ir.Model:
    return build_model(plan(checkpoint, Options()), "tiny", shared_prefix)


def assert_equal_scores(expected: NDArray[np.float64], actual: NDArray[np.float64], tolerance: float) -> None:
    assert np.isfinite(expected).all()
    assert np.abs(actual - expected).max() <= tolerance * expected.std()


def test_float16_gives_the_outputs_of_the_cpu_dialect(case: Case) -> None:
    expected, actual = (case.outputs(case.lowered("fp16", target)) for target in ("cpu", "tensorrt"))
    assert set(actual) == set(expected)
    for name, values in expected.items():
        assert_equal_scores(values, actual[name], FLOAT16_TOLERANCE)


def test_float16_gives_the_scores_of_the_cpu_dialects_float32(case: Case) -> None:
    expected, actual = (case.scores(case.lowered(*key)) for key in (("fp32", "cpu"), ("fp16", "tensorrt")))
    assert_equal_scores(expected, actual, FLOAT16_TOLERANCE)


def test_float32_gives_the_scores_of_the_cpu_dialect(case: Case) -> None:
    expected, actual = (case.scores(case.lowered("fp32", target)) for target in ("cpu", "tensorrt"))
    assert_equal_scores(expected, actual, FLOAT32_TOLERANCE)


def test_with_the_same_integer_weights_int8_gives_the_scores_of_the_cpu_dialect(case: Case) -> None:
    rounded = RoundScales(ir.DataType.FLOAT16)(case.int8()).model
    graphs = (lower(rounded, "int8", TARGETS["cpu"]), lower(case.int8(), "int8", TARGETS["tensorrt"]))
    expected, actual = (case.scores(without_activation_rounding(graph), optimised=False) for graph in graphs)
    assert_equal_scores(expected, actual, FLOAT16_TOLERANCE)


def test_int8_is_no_further_from_float32_than_in_the_cpu_dialect(case: Case) -> None:
    """A third more is allowed: both are samples of one rounding noise, over 240 rows."""
    expected = case.scores(case.lowered("fp32", "cpu"))
    cpu, low = (
        np.sqrt(np.mean((case.scores(lower(case.int8(), "int8", TARGETS[target])) - expected) ** 2))
        for target in ("cpu", "tensorrt")
    )
    assert low <= 4 / 3 * cpu
    assert low < expected.std() / 3


@pytest.mark.parametrize("shared_prefix", [False, True])
def test_no_clear_preference_of_the_trained_demo_differs_between_the_dialects(shared_prefix: bool) -> None:
    checkpoint = open_checkpoint(checkpoint_path())
    plan = family("armorm").plan(checkpoint, Options())
    chats = [one.chat(answer) for one in comparisons(25, seed=1, split="held_out") for answer in one.answers]
    prompts = ChatPrompter(plan.prompt, Tokenizer.from_str(plan.tokenizer_json)).encode(chats)
    rows = [np.asarray(prompt.ids, np.int64) for prompt in prompts]
    build = partial(built, family("armorm").plan, checkpoint)
    demo = Case(build, shared_prefix, rows)
    cpu, low = (demo.scores(lower(demo.int8(), "int8", TARGETS[target])) for target in ("cpu", "tensorrt"))
    agreement = compare_scores(cpu, low)
    assert agreement.order.clear_pairs > 1000
    assert agreement.order.clear_flips == 0
