"""Whatever JSON is sent to whatever route: an answer or a reason, never a defect of ours, never a hang."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fake_models import FakeEngine, pair_pm, pointwise
from rm_runtime.serving.grpc.messages import message
from rm_runtime.serving.routes import POST_ROUTES
from served import Client, serving

KEYS = st.sampled_from(
    [
        *(
            "messages",
            "responses",
            "model",
            "requests",
            "errors",
            "input",
            "candidates",
            "instruction",
            "role",
            "content",
        ),
        *("query", "texts", "inputs", "raw_scores", "return_text", "truncate", "use_activation", "prompts"),
        *("outputs", "name", "shape", "datatype", "data", "parameters", "id"),
    ]
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(
        ["user", "assistant", "chats", "input_ids", "BYTES", "INT64", "rm", "pm", "return", "\ud800", "<|eot_id|>"]
    ),
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text(max_size=8)}
)
NEARLY_RIGHT = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["rm", "pm"]),
        "messages": st.one_of(JSON, st.lists(MESSAGE, max_size=3)),
        "responses": st.one_of(JSON, st.lists(st.text(max_size=4), max_size=3)),
        "texts": st.one_of(JSON, st.lists(st.text(max_size=4), max_size=3)),
        "query": st.one_of(JSON, st.text(max_size=4)),
        "input": st.one_of(JSON, st.text(max_size=4)),
        "inputs": JSON,
        "raw_scores": JSON,
    },
)

NUMBERS = st.lists(st.integers(-1, 9), max_size=4)
TENSOR = st.fixed_dictionaries(
    {"name": st.sampled_from(["chats", "input_ids", "attention_mask"])},
    optional={
        "datatype": st.one_of(st.sampled_from(["BYTES", "INT64"]), LEAVES),
        "shape": st.one_of(st.lists(st.integers(-1, 3), max_size=3), JSON),
        "data": st.one_of(NUMBERS, st.lists(NUMBERS, max_size=3), st.lists(JSON.map(json.dumps), max_size=3), JSON),
        "parameters": JSON,
    },
)
REQUEST = st.one_of(
    JSON,
    st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=3)}),
    st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=2), "responses": st.lists(st.text(max_size=4))}),
)
FUZZED = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    scalar: Any = pointwise(lambda rendered: {"score": float(len(rendered))})
    pairwise: Any = pair_pm(lambda a, b: (0.0, 0.0))
    pairwise.engine = FakeEngine(lambda ids: {"logits": (float(ids.sum() % 7), 1.0)})  # it need not find the answers
    with serving({"rm": scalar, "pm": pairwise}, grpc=True) as running:
        yield running


@pytest.mark.parametrize("path", [route.path.format(model="rm") for route in POST_ROUTES])
@FUZZED
@given(document=st.one_of(JSON, NEARLY_RIGHT))
def test_any_json_is_answered_or_refused(client: Client, path: str, document: Any) -> None:
    reply = client.ask("POST", path, json.dumps(document).encode())
    assert reply.status in (200, 404, 413, 422), reply.body
    assert reply.status == 200 or reply.json["error"]


@FUZZED
@given(
    tensors=st.one_of(JSON, st.lists(TENSOR, max_size=3)),
    outputs=st.one_of(st.none(), JSON, st.lists(st.fixed_dictionaries({"name": st.sampled_from(["score", "x"])}))),
)
def test_any_tensors_are_answered_or_refused(client: Client, tensors: Any, outputs: Any) -> None:
    body = json.dumps({"inputs": tensors, "outputs": outputs}).encode()
    for model in ("rm", "pm"):
        assert client.ask("POST", f"/v2/models/{model}/infer", body).status in (200, 422)


@FUZZED
@given(requests=st.lists(REQUEST, max_size=5), model=st.sampled_from(["rm", "pm"]))
def test_the_rows_that_a_refusal_names_are_those_that_have_no_answer(
    client: Client, requests: list[Any], model: str
) -> None:
    document = {"requests": requests, "model": model}
    returned = client.post("/v1/score", {**document, "errors": "return"})
    assert returned.status == 200
    replies = returned.json["replies"]
    assert len(replies) == len(requests)
    failed = [{"row": row, **reply} for row, reply in enumerate(replies) if "error" in reply]
    raised = client.post("/v1/score", document)
    assert raised.status == (422 if failed else 200)
    assert (raised.json["rows"] if failed else raised.json["replies"]) == (failed or replies)


@FUZZED
@given(body=st.binary(max_size=60))
def test_any_bytes_are_answered_or_refused(client: Client, body: bytes) -> None:
    assert client.ask("POST", "/v1/score", body).status in (400, 422)


TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["chats", "input_ids", "attention_mask", "pixels"]),
        "datatype": st.sampled_from(["BYTES", "INT64", "FP32", ""]),
        "shape": st.lists(st.integers(-1, 3) | st.integers(-(2**63), 2**63 - 1), max_size=3),
        "contents": st.fixed_dictionaries(
            {},
            optional={
                "int64_contents": st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), max_size=4),
                "bytes_contents": st.lists(st.sampled_from(["", "e30=", "/w==", "W10="]), max_size=3),
            },
        ),
    },
)
CALL = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=3)},
    optional={
        "model_name": st.sampled_from(["rm", "pm", "other"]),
        "model_version": st.sampled_from(["", "1", "x"]),
        "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["score", "replies", "x"])}), max_size=2),
        "raw_input_contents": st.lists(st.sampled_from(["", "AQAAAAAAAAA=", "AgAAAHt9"]), max_size=3),
    },
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.one_of(st.binary(max_size=60), CALL.map(lambda call: ParseDict(call, message("ModelInferRequest")()))))
def test_any_message_is_answered_or_refused(client: Client, body: Any) -> None:
    content = body if isinstance(body, bytes) else body.SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{client.grpc_port}") as channel:
        asked = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(content)
        assert asked.code().name in ("OK", "INVALID_ARGUMENT", "NOT_FOUND"), asked.details()
