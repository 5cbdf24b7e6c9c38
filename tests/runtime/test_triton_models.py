"""What the Triton models decide without a server: lengths of rows, where they run, what becomes of errors."""

from __future__ import annotations

import gc
import json
import sys
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fake_models import answer_of, pointwise
from rm_runtime.errors import EngineError
from rm_runtime.triton import scoring as scoring_module
from rm_runtime.triton.lengths import bucket_length, padded_to_bucket
from rm_runtime.triton.scoring import ScoringModel
from rm_runtime.triton.settings import Settings, read_settings


@given(length=st.integers(0, 40_000), longest=st.integers(1, 40_000))
def test_a_bucket_holds_its_row_and_is_a_bucket_itself(length: int, longest: int) -> None:
    length = min(length, longest)
    bucket = bucket_length(length, longest)
    assert max(1, length) <= bucket <= longest
    assert bucket_length(bucket, longest) == bucket
    assert bucket - length < max(17, length / 8 + 1)


def test_there_are_few_buckets() -> None:
    assert len({bucket_length(length, 4096) for length in range(4097)}) == 48
    assert [bucket_length(length, 4096) for length in (1, 16, 17, 128, 129, 257, 4000)] == [
        16,
        16,
        32,
        128,
        144,
        288,
        4096,
    ]
    assert bucket_length(20, 24) == 24


def test_rows_are_padded_on_the_right_to_the_bucket_of_the_longest() -> None:
    ids, mask = padded_to_bucket([np.array([1, 2, 3]), np.arange(1, 18)], 9, 512)
    assert ids.shape == mask.shape == (2, 32)
    assert ids[0].tolist() == [1, 2, 3, *[9] * 29]
    assert mask.sum(axis=1).tolist() == [3, 17]


def arguments(**parameters: str) -> dict[str, Any]:
    config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    return {
        "model_config": json.dumps(config),
        "model_repository": "/repo/rm",
        "model_version": "3",
        "model_name": "rm",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }


def test_settings_come_from_the_configuration_and_the_instance() -> None:
    assert read_settings(arguments()) == Settings(Path("/repo/rm/3/bundle"), "cpu")
    on_gpu = arguments(threads="2", engine="tensorrt") | {
        "model_instance_kind": "GPU",
        "model_instance_device_id": "1",
    }
    assert read_settings(on_gpu) == Settings(Path("/repo/rm/3/bundle"), "cuda:1", "tensorrt", 2)
    split = read_settings(arguments(graph="rm_graph", graph_batch="8", batch_tokens="512"))
    assert (split.graph, split.graph_batch, split.batch_tokens) == ("rm_graph", 8, 512)


@pytest.mark.parametrize("value", ["0", "-1", "many", ""])
def test_a_parameter_that_is_no_number_is_named(value: str) -> None:
    with pytest.raises(EngineError, match=f"config.pbtxt of rm: threads is '{value}'"):
        read_settings(arguments(threads=value))


class FakeRequest:
    """A request for everything, of these chats."""

    def __init__(self, *chats: str) -> None:
        self.chats = np.array([[chat.encode()] for chat in chats], np.object_).reshape(-1, 1)

    def requested_output_names(self) -> set[str]:
        return {"replies", "score", "input_ids", "attention_mask"}


class FakeTensor:
    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> NDArray[Any]:
        return self.array


class FakeError(Exception):
    INVALID_ARG, INTERNAL = "INVALID_ARG", "INTERNAL"


@dataclass(frozen=True)
class FakeResponse:
    tensors: Sequence[FakeTensor] = ()
    error: FakeError | None = None

    def values(self, name: str) -> list[Any]:
        return next(tensor.array.tolist() for tensor in self.tensors if tensor.name == name)


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that Triton gives to its Python models."""
    module = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse, module.TritonError = FakeTensor, FakeResponse, FakeError  # type: ignore[attr-defined]
    module.get_input_tensor_by_name = lambda request, name: FakeTensor(name, request.chats)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def chat(answer: str) -> str:
    return json.dumps({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]})


def scoring(monkeypatch: pytest.MonkeyPatch, outputs_of: Callable[[str], Mapping[str, Any]]) -> ScoringModel:
    model = ScoringModel()
    monkeypatch.setattr(scoring_module, "open_model", lambda settings: pointwise(outputs_of))
    model.initialize(arguments())
    return model


def test_the_chats_of_all_requests_are_scored_as_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scoring(monkeypatch, lambda rendered: {"score": float(answer_of(rendered))})
    one, none, two = model.execute([FakeRequest(chat("1"), chat("2")), FakeRequest("{"), FakeRequest(chat("3"))])
    assert model._model.engine.batches == [3]
    assert (one.values("score"), two.values("score")) == ([1.0, 2.0], [3.0])
    assert [json.loads(reply) for reply in one.values("replies")] == [{"score": 1.0}, {"score": 2.0}]
    reason, code = none.error.args
    assert reason.startswith("1 of 1 rows could not be scored: row 0: not JSON: ")
    assert code == "INVALID_ARG"


def test_where_the_engine_fails_each_request_is_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def outputs_of(rendered: str) -> Mapping[str, Any]:
        if answer_of(rendered) == "bad":
            raise EngineError("out of memory")
        return {"score": 1.0}

    model = scoring(monkeypatch, outputs_of)
    good, bad = model.execute([FakeRequest(chat("good")), FakeRequest(chat("bad"))])
    assert good.values("score") == [1.0]
    assert bad.error.args == ("out of memory", "INTERNAL")
    (alone,) = model.execute([FakeRequest(chat("bad"))])
    assert alone.error.args == ("out of memory", "INTERNAL")


@pytest.mark.parametrize("bad", ["{", "{}", '{"messages": []}', '{"messages": [{"role": "user"}]}'])
def test_an_error_does_not_keep_tritons_requests(monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    model = scoring(monkeypatch, lambda rendered: {"score": 1.0})
    gc.disable()
    try:
        requests = [FakeRequest(bad), FakeRequest(chat("fine"), bad)]
        kept = [weakref.ref(request) for request in requests]
        assert [response.error is not None for response in model.execute(requests)] == [True, True]
        del requests
        assert [request() for request in kept] == [None, None]
    finally:
        gc.enable()
