"""The runner of compiled plans, over a TensorRT and a CUDA that do in the host's memory what the real ones do."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from numpy.typing import NDArray

import checkpoints
import fake_tensorrt
from fake_tensorrt import FakeContext, FakeTensorRt, Status
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_runtime.bundle import Bundle, open_bundle
from rm_runtime.engines import Arrays, Engine, open_engine
from rm_runtime.engines.protocol import Reservable
from rm_runtime.engines.shared_prefix import SharedPrefixEngine
from rm_runtime.engines.tensorrt_engine import GRAPHS, LENGTH_STEP
from rm_runtime.errors import EngineError

BUCKETS = [(4, 64), (2, 128)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorrt")
    checkpoint = open_checkpoint(checkpoints.grm(folder / "checkpoint"))
    return export_checkpoint(checkpoint, folder / "bundle", target="tensorrt")


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Bundle:
    folder = Path(shutil.copytree(exported, tmp_path / "bundle"))
    fake_tensorrt.add_plans(folder, BUCKETS)
    return open_bundle(folder)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    return fake_tensorrt.install(monkeypatch)


@pytest.fixture
def engine(bundle: Bundle, trt: FakeTensorRt) -> Engine:
    return open_engine(bundle, "tensorrt", share_prefixes=False)


def batch(rows: int, length: int, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """Rows of different lengths, the first of `length` ids."""
    rng = np.random.default_rng(seed)
    lengths = [length, *rng.integers(1, length + 1, rows - 1)]
    mask = (np.arange(length) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": rng.integers(5, 80, (rows, length)) * mask, "attention_mask": mask}


def assert_scores_of_onnxruntime(bundle: Bundle, inputs: dict[str, NDArray[np.int64]], actual: Arrays) -> None:
    expected = open_engine(bundle, "onnxruntime", threads=1).run(inputs)
    assert set(actual) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (3, 20), (4, 64), (2, 128)])
def test_scores_are_those_of_onnx_runtime(bundle: Bundle, engine: Engine, rows: int, length: int) -> None:
    inputs = batch(rows, length)
    assert_scores_of_onnxruntime(bundle, inputs, engine.run(inputs))


def test_auto_takes_tensorrt_for_a_bundle_written_for_it_where_there_is_a_gpu(
    bundle: Bundle, trt: FakeTensorRt
) -> None:
    assert open_engine(bundle).name == "tensorrt"


def test_more_rows_than_a_profile_holds_are_run_in_parts(bundle: Bundle, engine: Engine, trt: FakeTensorRt) -> None:
    inputs = batch(11, 30)
    assert_scores_of_onnxruntime(bundle, inputs, engine.run(inputs))
    assert [shapes["input_ids"][0] for _, shapes in trt.ran] == [4, 4, 3]


def test_parts_are_of_the_rows_that_the_padded_length_allows(exported: Path, tmp_path: Path, trt: FakeTensorRt) -> None:
    """40 ids fit the first profile, their 64 padded ones only the second."""
    folder = Path(shutil.copytree(exported, tmp_path / "bundle"))
    fake_tensorrt.add_plans(folder, [(4, 40), (2, 128)])
    bundle, inputs = open_bundle(folder), batch(4, 40)
    assert_scores_of_onnxruntime(bundle, inputs, open_engine(bundle, "tensorrt").run(inputs))
    assert [(number, shapes["input_ids"]) for number, shapes in trt.ran][:1] == [(1, (2, 64))]


@pytest.mark.parametrize(("length", "profile"), [(1, 0), (64, 0), (65, 1), (128, 1)])
def test_the_smallest_profile_that_holds_the_request_is_taken(
    engine: Engine, trt: FakeTensorRt, length: int, profile: int
) -> None:
    engine.run(batch(2, length))
    assert {number for number, _ in trt.ran} == {profile}


@pytest.mark.parametrize(("length", "padded"), [(1, LENGTH_STEP), (32, 32), (33, 64), (97, 128)])
def test_rows_are_padded_to_the_length_step(engine: Engine, trt: FakeTensorRt, length: int, padded: int) -> None:
    engine.run(batch(2, length))
    assert trt.ran[0][1]["input_ids"] == (2, padded)


def test_reserve_takes_the_memory_of_every_profile_of_both_graphs_so_that_later_shapes_need_none(
    bundle: Bundle, trt: FakeTensorRt
) -> None:
    both = open_engine(bundle, "tensorrt")
    assert isinstance(both, SharedPrefixEngine)
    both.reserve()
    allocated = set(trt.cuda.memory)
    trt.contexts = 0
    prefix = {"prefix_ids": np.full((1, 9), 7, np.int64)}
    for inputs in (batch(2, 30), batch(2, 100), {**batch(2, 30), **prefix}, {**batch(2, 100), **prefix}):
        both.run(inputs)
    assert set(trt.cuda.memory) == allocated


def test_reserve_fails_where_the_memory_does_not_suffice(engine: Engine, trt: FakeTensorRt) -> None:
    trt.contexts = 1
    engine.run(batch(2, 30))
    assert isinstance(engine, Reservable)
    with pytest.raises(EngineError, match="no memory left"):
        engine.reserve()


def test_a_shape_that_comes_again_is_launched_as_a_graph_and_gives_the_scores_of_the_new_ids(
    bundle: Bundle, engine: Engine, trt: FakeTensorRt
) -> None:
    engine.run(batch(2, 30, seed=1))
    engine.run(batch(3, 60, seed=2))  # another shape in between
    assert trt.cuda.launches == 0
    inputs = batch(2, 29, seed=3)
    assert_scores_of_onnxruntime(bundle, inputs, engine.run(inputs))
    assert trt.cuda.launches == 1


def test_an_engine_that_says_it_cannot_be_captured_is_run_each_time(
    bundle: Bundle, engine: Engine, trt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeContext, "is_stream_capturable", lambda context, stream: False, raising=False)
    inputs = batch(2, 30)
    for _ in range(2):
        assert_scores_of_onnxruntime(bundle, inputs, engine.run(inputs))
    assert len(trt.ran) == 2
    assert trt.cuda.launches == 0


def test_only_the_latest_used_shapes_keep_their_graphs(exported: Path, tmp_path: Path, trt: FakeTensorRt) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "bundle"))
    fake_tensorrt.add_plans(folder, [(GRAPHS + 1, 32)])
    engine = open_engine(open_bundle(folder), "tensorrt")
    for rows in (*range(1, GRAPHS + 1), 1, GRAPHS + 1):
        engine.run(batch(rows, 5))
    assert len(trt.cuda.graphs) == GRAPHS
    launches = trt.cuda.launches
    engine.run(batch(1, 5))  # used again, so 2 went instead
    assert trt.cuda.launches == launches + 1
    engine.run(batch(2, 5))
    assert trt.cuda.launches == launches + 1


def test_the_prefix_graph_is_run_behind_the_plain_one(bundle: Bundle, trt: FakeTensorRt) -> None:
    opened = open_engine(bundle, "tensorrt")
    assert isinstance(opened, SharedPrefixEngine)
    own, prefix = batch(6, 20), np.random.default_rng(5).integers(5, 80, (1, 37))
    inputs = {**own, "prefix_ids": prefix}
    for _ in range(2):  # the second time as a graph
        assert_scores_of_onnxruntime(bundle, inputs, opened.run(inputs))
    assert {shapes["prefix_ids"] for _, shapes in trt.ran} == {(1, 37)}


@pytest.mark.parametrize("inputs", [batch(3, 129), {**batch(1, 8), "prefix_ids": np.ones((1, 5000), np.int64)}])
def test_a_request_longer_than_every_profile_is_one_line_that_says_what_fits(
    bundle: Bundle, trt: FakeTensorRt, inputs: dict[str, NDArray[np.int64]]
) -> None:
    with pytest.raises(
        EngineError, match=r"no profile .* takes .* \(the longest: input_ids 2x128, .*rm-export engine --shapes"
    ) as caught:
        open_engine(bundle, "tensorrt").run(inputs)
    assert "\n" not in str(caught.value)


def test_ids_of_another_integer_type_give_the_same_scores(bundle: Bundle, engine: Engine) -> None:
    inputs = batch(2, 20)
    narrow = {name: array.astype(np.int32) for name, array in inputs.items()}
    assert_scores_of_onnxruntime(bundle, inputs, engine.run(narrow))


def test_an_engine_stays_on_its_device_in_every_thread(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = fake_tensorrt.install(monkeypatch, ["7.5", "8.9"])
    engine = open_engine(bundle, "tensorrt", device="cuda:1", share_prefixes=False)
    inputs, results = batch(2, 20), list[Arrays]()
    thread = Thread(target=lambda: results.append(engine.run(inputs)))  # its current device is 0
    thread.start()
    thread.join()
    assert_scores_of_onnxruntime(bundle, inputs, results[0])
    assert {device for _, device in trt.cuda.memory.values()} == {1}


@pytest.mark.parametrize("device", ["cpu", "cuda:x", "cuda:-1"])
def test_another_device_is_refused(bundle: Bundle, trt: FakeTensorRt, device: str) -> None:
    with pytest.raises(EngineError, match=f"runs on cuda or cuda:N, not on '{device}'"):
        open_engine(bundle, "tensorrt", device=device)


FAILURES: Sequence[tuple[str, Status, str]] = [
    ("cudaMalloc", Status.cudaErrorMemoryAllocation, "the GPU is out of memory .*smaller --shapes"),
    ("cudaHostAlloc", Status.cudaErrorMemoryAllocation, "the GPU is out of memory"),
    ("cudaMemcpyAsync", Status.cudaErrorIllegalAddress, "CUDA failed: cudaErrorIllegalAddress"),
    ("cudaStreamSynchronize", Status.cudaErrorIllegalAddress, "CUDA failed: cudaErrorIllegalAddress"),
]


@pytest.mark.parametrize(("call", "status", "reason"), FAILURES)
def test_what_cuda_refuses_is_one_line_and_the_next_request_is_scored(
    bundle: Bundle, engine: Engine, trt: FakeTensorRt, call: str, status: Status, reason: str
) -> None:
    trt.cuda.failing[call] = status
    with pytest.raises(EngineError, match=reason) as caught:
        engine.run(batch(2, 20))
    assert "\n" not in str(caught.value)
    trt.cuda.failing.clear()
    inputs = batch(2, 20)
    assert_scores_of_onnxruntime(bundle, inputs, engine.run(inputs))


def test_a_profile_that_finds_no_memory_is_one_line(engine: Engine, trt: FakeTensorRt) -> None:
    trt.contexts = 0
    with pytest.raises(EngineError, match="no memory left for this engine's largest shapes"):
        engine.run(batch(2, 20))


def test_a_run_that_tensorrt_refuses_leaves_the_stream_usable(
    bundle: Bundle, engine: Engine, trt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, execute = batch(2, 20), FakeContext.execute_async_v3

    def refuses_captures(context: FakeContext, number: int) -> bool:
        return trt.cuda.streams[number].captured is None and execute(context, number)

    with monkeypatch.context() as patch:
        patch.setattr(FakeContext, "execute_async_v3", refuses_captures)
        with pytest.raises(EngineError, match="TensorRT could not run its engine"):
            engine.run(inputs)
    assert_scores_of_onnxruntime(bundle, inputs, engine.run(inputs))


def test_memory_goes_back_with_the_engine(bundle: Bundle, trt: FakeTensorRt) -> None:
    engine = open_engine(bundle, "tensorrt", share_prefixes=False)
    engine.run(batch(2, 20))
    assert trt.cuda.memory
    del engine
    trt.cuda.streams.clear()
    trt.cuda.graphs.clear()
    gc.collect()
    assert not trt.cuda.memory


def test_a_stripped_plan_is_refitted_from_its_graph(bundle: Bundle, trt: FakeTensorRt) -> None:
    fake_tensorrt.add_plans(bundle.path, BUCKETS, stripped=True)
    open_engine(open_bundle(bundle.path), "tensorrt", share_prefixes=False)
    assert trt.refitted == [str(bundle.graph_path())]


def test_weights_that_do_not_fit_a_stripped_plan_are_one_line(
    bundle: Bundle, trt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.add_plans(bundle.path, BUCKETS, stripped=True)
    monkeypatch.setattr(
        trt, "Refitter", lambda engine, logger: type("", (), {"refit_cuda_engine": lambda self: False})()
    )
    with pytest.raises(EngineError, match=r"the weights of .* do not fit its engine"):
        open_engine(open_bundle(bundle.path), "tensorrt")
