"""The Open Inference Protocol over gRPC, asked by tritonclient and, where that behaves too well, by bare channels."""

from __future__ import annotations

import json
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_health.v1 import health_pb2
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

import rm_runtime.serving.grpc.messages as ours
from conversations import conversations
from fake_models import Gate, answer_of, pair_pm, pointwise, write_scalar_bundle
from rm_runtime import load
from rm_runtime.serving.errors import UnknownModelError
from rm_runtime.serving.grpc.codes import line_of
from rm_runtime.serving.grpc.server import address_of
from served import PATIENCE, Client, eventually, served_process, serving

QUESTION = [{"role": "user", "content": "How many?"}]
MODEL = pointwise(lambda rendered: {"score": float(answer_of(rendered))})
PAIRWISE = pair_pm(lambda a, b: (float(a), float(b)))
INFER = "/inference.GRPCInferenceService/ModelInfer"


def chat(answer: str) -> dict[str, Any]:
    return {"messages": [*QUESTION, {"role": "assistant", "content": answer}]}


def chats(*requests: Any) -> list[InferInput]:
    texts = InferInput("chats", [len(requests)], "BYTES")
    texts.set_data_from_numpy(np.array([json.dumps(request) for request in requests], np.object_))
    return [texts]


def int64(name: str, rows: Any) -> InferInput:
    tensor = InferInput(name, list(np.shape(rows)), "INT64")
    tensor.set_data_from_numpy(np.array(rows, np.int64))
    return tensor


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    """The code and the line that a call of tritonclient fails with."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


@pytest.fixture(scope="module")
def served() -> Iterator[Client]:
    with serving({"rm": MODEL, "pm": PAIRWISE}, grpc=True) as client:
        yield client


@pytest.fixture(scope="module")
def triton(served: Client) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(f"127.0.0.1:{served.grpc_port}") as client:
        yield client


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()


def triton_of(client: Client) -> InferenceServerClient:
    return InferenceServerClient(f"127.0.0.1:{client.grpc_port}")


def bare(client: Client) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{client.grpc_port}")


def test_metadata_is_that_of_http(served: Client, triton: InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("rm")
    assert triton.is_model_ready("rm", "1")
    assert triton.get_server_metadata(as_json=True)["name"] == "rm-runtime"
    metadata = triton.get_model_metadata("rm", as_json=True)
    over_http = served.get("/v2/models/rm").json
    for side in ("inputs", "outputs"):
        for tensor in metadata[side]:
            tensor["shape"] = [int(size) for size in tensor["shape"]]
    assert metadata == over_http
    index = triton.get_model_repository_index(as_json=True)
    assert [(model["name"], model["state"]) for model in index["models"]] == [("rm", "READY"), ("pm", "READY")]


def test_what_is_not_served_is_not_found_and_other_methods_are_unimplemented(triton: InferenceServerClient) -> None:
    for call in (
        lambda: triton.is_model_ready("other"),
        lambda: triton.is_model_ready("rm", "2"),
        lambda: triton.get_model_metadata("other"),
        lambda: triton.infer("other", chats(chat("1"))),
        lambda: triton.infer("rm", chats(chat("1")), model_version="2"),
    ):
        assert refusal(call)[0] == "NOT_FOUND"
    assert refusal(lambda: triton.get_model_config("rm"))[0] == "UNIMPLEMENTED"
    assert refusal(lambda: triton.load_model("rm"))[0] == "UNIMPLEMENTED"


def test_chats_give_replies_and_scores(triton: InferenceServerClient) -> None:
    inferred = triton.infer("rm", chats(chat("1"), chat("2.5")), request_id="7")
    assert inferred.get_response().id == "7"
    assert inferred.get_response().model_name == "rm"
    score = inferred.as_numpy("score")
    assert (score.dtype, score.tolist()) == (np.float32, [1.0, 2.5])
    assert [json.loads(reply) for reply in inferred.as_numpy("replies")] == [{"score": 1.0}, {"score": 2.5}]
    one = triton.infer("rm", chats(chat("3")), outputs=[InferRequestedOutput("score")])
    assert [output.name for output in one.get_response().outputs] == ["score"]
    pair = {"messages": QUESTION, "responses": ["1", "3"]}
    (reply,) = triton.infer("pm", chats(pair)).as_numpy("replies")
    assert json.loads(reply)["probability"] == PAIRWISE.compare(QUESTION, "1", "3").probability


def test_token_ids_with_their_padding_give_the_graphs_outputs(triton: InferenceServerClient) -> None:
    prompts = MODEL._prompter.encode([chat("1")["messages"], chat("2000")["messages"]])
    rows = [prompt.ids for prompt in prompts if not isinstance(prompt, Exception)]
    width = max(map(len, rows))
    ids = int64("input_ids", [np.pad(row, (0, width - len(row))) for row in rows])
    mask = int64("attention_mask", [np.arange(width) < len(row) for row in rows])
    assert triton.infer("rm", [ids, mask]).as_numpy("score").tolist() == [1.0, 2000.0]
    assert triton.infer("rm", [int64("input_ids", [rows[0]])]).as_numpy("score").tolist() == [1.0]


def test_typed_contents_are_answered_in_typed_contents(served: Client) -> None:
    request_class, response_class = ours.message("ModelInferRequest"), ours.message("ModelInferResponse")

    def inferred(*inputs: dict[str, Any]) -> Any:
        with bare(served) as channel:
            body = request_class(model_name="rm", inputs=inputs).SerializeToString()
            return response_class.FromString(channel.unary_unary(INFER)(body))

    texts = {"bytes_contents": [json.dumps(chat("4")).encode()]}
    replies, score = inferred({"name": "chats", "datatype": "BYTES", "shape": [1], "contents": texts}).outputs
    assert json.loads(replies.contents.bytes_contents[0]) == {"score": 4.0}
    assert (score.datatype, score.shape, score.contents.fp32_contents) == ("FP32", [1], [4.0])
    (prompt,) = MODEL._prompter.encode([chat("5")["messages"]])
    assert not isinstance(prompt, Exception)
    ids = {"int64_contents": prompt.ids.tolist()}
    shape = [1, len(prompt.ids)]
    (score,) = inferred({"name": "input_ids", "datatype": "INT64", "shape": shape, "contents": ids}).outputs
    assert score.contents.fp32_contents == [5.0]


def raw(*inputs: dict[str, Any], contents: tuple[bytes, ...]) -> bytes:
    request = ours.message("ModelInferRequest")(model_name="rm", inputs=inputs, raw_input_contents=contents)
    body: bytes = request.SerializeToString()
    return body


IDS = {"name": "input_ids", "datatype": "INT64", "shape": [1, 1]}
TEXTS = {"name": "chats", "datatype": "BYTES", "shape": [1]}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xff\xff\xff", "is no inference.ModelInferRequest"),
        (b"", "the inputs are none"),
        (raw(IDS, contents=(b"\0" * 7,)), "no tensor of INT64"),
        (raw(IDS, contents=(b"\0" * 16,)), "needs 1"),
        (raw({**IDS, "shape": [-1, -1]}, contents=(b"\0" * 8,)), "one or two sizes"),
        (raw({**IDS, "shape": [1]}, contents=(b"\0" * 8,)), "must have 2 dimensions"),
        (raw({**IDS, "shape": []}, contents=(b"\0" * 8,)), "one or two sizes"),
        (raw({**IDS, "datatype": "FP32"}, contents=(b"\0" * 4,)), "must be INT64"),
        (raw({**IDS, "datatype": "FP32"}, contents=()), "must be INT64"),
        (raw({**IDS, "name": "pixels"}, contents=(b"\0" * 8,)), "send chats"),
        (raw(IDS, contents=(b"\xff" * 8,)), "the tokenizer has not"),
        (raw(IDS, IDS, contents=(b"\0" * 8,) * 2), "there twice"),
        (raw({**IDS, "shape": [0, 1]}, contents=(b"",)), "no row"),
        (raw(IDS, contents=(b"\0" * 8, b"")), "2 raw_input_contents for 1 inputs"),
        (raw({**IDS, "contents": {"int64_contents": [1]}}, contents=(b"\0" * 8,)), "send one of them"),
        (raw(IDS, contents=()), "has 0 values"),
        (raw({**IDS, "parameters": {"shared_memory_region": {"string_param": "x"}}}, contents=()), "does not support"),
        (raw(TEXTS, contents=(b"\x03\0\0\0{}",)), "longer than its tensor"),
        (raw(TEXTS, contents=(b"\xff\xff\xff\xff{}",)), "longer than its tensor"),
        (raw(TEXTS, contents=(b"\x01\0\0\0\xff",)), "row 0: not UTF-8"),
        (raw(TEXTS, contents=(b"\x01\0\0\0{",)), "row 0: not JSON"),
    ],
)
def test_a_bad_message_is_an_invalid_argument_and_the_next_is_fine(
    served: Client, triton: InferenceServerClient, body: bytes, reason: str
) -> None:
    with bare(served) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(INFER)(body)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason in caught.value.details()
    assert triton.infer("rm", chats(chat("1"))).as_numpy("score").tolist() == [1.0]


def test_rows_that_cannot_be_scored_are_named(triton: InferenceServerClient) -> None:
    code, line = refusal(lambda: triton.infer("rm", chats(chat("1"), chat("NaN"), {"messages": []})))
    assert code == "INVALID_ARGUMENT"
    assert "2 of 3 rows" in line
    assert "row 1: " in line
    assert "row 2: " in line


def test_a_thousand_reasons_are_cut_to_what_a_header_holds(triton: InferenceServerClient) -> None:
    code, line = refusal(lambda: triton.infer("rm", chats(*["no request"] * 1000)))
    assert (code, line[-3:]) == ("INVALID_ARGUMENT", "...")
    assert "1000 of 1000 rows" in line


def test_a_line_is_cut_by_the_bytes_it_is_sent_as() -> None:
    assert line_of(UnknownModelError("a" * 5000)) == "a" * 4096 + " ..."
    assert line_of(UnknownModelError("ж" * 5000)) == "ж" * (4096 // 6) + " ..."
    assert line_of(UnknownModelError("\ud800")) == "?"


def test_an_engine_that_fails_is_internal(triton: InferenceServerClient) -> None:
    assert refusal(lambda: triton.infer("rm", chats(chat("no number")))) == (
        "INTERNAL",
        "the engine failed: ValueError",
    )
    assert triton.infer("rm", chats(chat("1"))).as_numpy("score").tolist() == [1.0]


def test_a_message_beyond_the_limit_is_refused_before_it_is_read() -> None:
    with serving({"rm": MODEL}, grpc=True, max_body_bytes=10_000) as client, triton_of(client) as triton:
        code, line = refusal(lambda: triton.infer("rm", chats(chat("1" * 100_000))))
        assert (code, "larger than max" in line) == ("RESOURCE_EXHAUSTED", True)
        assert triton.infer("rm", chats(chat("1"))).as_numpy("score").tolist() == [1.0]
        assert client.metric("rm_requests_in_flight") == 0


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_a_compressed_message_is_refused_however_small(triton: InferenceServerClient, compression: str) -> None:
    code, line = refusal(lambda: triton.infer("rm", chats(chat("1" * 1000)), compression_algorithm=compression))
    assert (code, f"'{compression}' is disabled" in line) == ("UNIMPLEMENTED", True)
    assert triton.infer("rm", chats(chat("1"))).as_numpy("score").tolist() == [1.0]


def test_too_many_rows_are_an_invalid_argument_as_they_will_never_fit() -> None:
    with serving({"rm": MODEL}, grpc=True, max_rows=3) as client, triton_of(client) as triton:
        code, line = refusal(lambda: triton.infer("rm", chats(*[chat("1")] * 4)))
        assert (code, "makes 4 prompts, 3 is the limit" in line) == ("INVALID_ARGUMENT", True)
        code, line = refusal(lambda: triton.infer("rm", [int64("input_ids", [[1]] * 4)]))
        assert (code, "makes 4 prompts, 3 is the limit" in line) == ("INVALID_ARGUMENT", True)


Waiting = queue.SimpleQueue[tuple[InferResult | None, InferenceServerException | None]]


def asked(triton: InferenceServerClient, answer: str, **options: Any) -> tuple[Any, Waiting]:
    """A call in the background: the call, which can be cancelled, and where what comes of it will be."""
    done: Waiting = queue.SimpleQueue()
    call = triton.async_infer("rm", chats(chat(answer)), lambda result, error: done.put((result, error)), **options)
    return call, done


def score_of(waiting: Waiting) -> float:
    result, error = waiting.get(timeout=PATIENCE)
    assert result is not None, error
    (score,) = result.as_numpy("score").tolist()
    return float(score)


def test_a_full_queue_tells_when_to_come_back_in_its_trailing_metadata(gate: Gate) -> None:
    with (
        serving({"rm": gate.model}, grpc=True, max_queue_rows=1) as client,
        triton_of(client) as triton,
        bare(client) as channel,
    ):
        _, first = asked(triton, "1")
        assert gate.entered.wait(PATIENCE)
        _, second = asked(triton, "2")
        eventually(lambda: client.metric("rm_waiting_rows") == 1)
        text = json.dumps(chat("3")).encode()
        body = raw(TEXTS, contents=(len(text).to_bytes(4, "little") + text,))
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(INFER)(body)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing = dict(caught.value.trailing_metadata())
        assert trailing["error-type"] == "QueueFullError"
        assert int(trailing["retry-after"]) >= 1
        gate.opened.set()
        assert (score_of(first), score_of(second)) == (1.0, 2.0)


def test_http_and_grpc_share_the_requests_that_may_be_in_work(gate: Gate) -> None:
    with serving({"rm": gate.model}, grpc=True, max_requests=1) as client, triton_of(client) as triton:
        _, waiting = asked(triton, "1")
        assert gate.entered.wait(PATIENCE)
        assert client.post("/v1/score", chat("2")).status == 429
        assert refusal(lambda: triton.infer("rm", chats(chat("2"))))[0] == "RESOURCE_EXHAUSTED"
        assert triton.is_server_ready()
        gate.opened.set()
        assert score_of(waiting) == 1.0


def test_a_call_past_the_servers_time_is_told_and_leaves_the_queue(gate: Gate) -> None:
    with serving({"rm": gate.model}, grpc=True, timeout_seconds=0.2) as client, triton_of(client) as triton:
        _, first = asked(triton, "1")
        assert gate.entered.wait(PATIENCE)
        late = refusal(lambda: triton.infer("rm", chats(chat("2")), client_timeout=PATIENCE))
        assert late == ("DEADLINE_EXCEEDED", "not answered within 0.2 seconds")
        assert client.metric("rm_waiting_rows") == 0
        gate.opened.set()
        _, error = first.get(timeout=PATIENCE)
        assert error is not None


def test_a_call_past_its_clients_time_leaves_the_queue(gate: Gate) -> None:
    with serving({"rm": gate.model}, grpc=True) as client, triton_of(client) as triton:
        _, first = asked(triton, "1")
        assert gate.entered.wait(PATIENCE)
        assert refusal(lambda: triton.infer("rm", chats(chat("2")), client_timeout=0.3))[0] == "DEADLINE_EXCEEDED"
        eventually(lambda: client.metric("rm_requests_in_flight") == 1)
        assert client.metric("rm_waiting_rows") == 0
        gate.opened.set()
        assert score_of(first) == 1.0


def test_a_cancelled_call_leaves_the_queue(gate: Gate) -> None:
    with serving({"rm": gate.model}, grpc=True) as client, triton_of(client) as triton:
        _, first = asked(triton, "1")
        assert gate.entered.wait(PATIENCE)
        call, second = asked(triton, "2")
        eventually(lambda: client.metric("rm_waiting_rows") == 1)
        call.cancel()
        eventually(lambda: client.metric("rm_waiting_rows") == 0)
        eventually(lambda: client.metric("rm_requests_in_flight") == 1)
        _, error = second.get(timeout=PATIENCE)
        assert error is not None
        assert 'status="CANCELLED"' in client.get("/metrics").body.decode()
        gate.opened.set()
        assert score_of(first) == 1.0


def test_a_message_that_does_not_come_is_given_up(gate: Gate) -> None:
    with serving({"rm": gate.model}, grpc=True, body_seconds=0.2) as client, bare(client) as channel:
        never = threading.Event()
        with pytest.raises(grpc.RpcError) as caught:
            channel.stream_unary(INFER)(iter(lambda: never.wait(PATIENCE), True), timeout=PATIENCE)
        never.set()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert caught.value.details() == "the message did not come within 0.2 seconds"
        with pytest.raises(grpc.RpcError) as caught:
            channel.stream_unary(INFER)(iter(()))
        assert caught.value.details() == "the call ended without a message"
        assert client.metric("rm_requests_in_flight") == 0


def test_bytes_that_are_no_grpc_end_their_connection_only(served: Client, triton: InferenceServerClient) -> None:
    for sent in (
        b"GET / HTTP/1.1\r\nhost: here\r\n\r\n",
        b"\xff" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 99,
    ):
        with socket.create_connection(("127.0.0.1", served.grpc_port), PATIENCE) as stranger:
            stranger.sendall(sent)
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(4096):
                pass
        assert triton.infer("rm", chats(chat("1"))).as_numpy("score").tolist() == [1.0]


def health(client: Client, service: str = "") -> str:
    with bare(client) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        answer = check(health_pb2.HealthCheckRequest(service=service).SerializeToString())
    status = health_pb2.HealthCheckResponse.FromString(answer).status
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


def test_while_bundles_are_loaded_it_is_live_and_not_ready(gate: Gate) -> None:
    may_load = threading.Event()

    def loaded() -> Any:
        assert may_load.wait(PATIENCE)
        return gate.model

    gate.opened.set()
    with serving({"rm": loaded}, grpc=True) as client, triton_of(client) as triton:
        assert triton.is_server_live()
        assert not triton.is_server_ready()
        assert not triton.is_model_ready("rm")
        assert health(client) == "NOT_SERVING"
        assert refusal(lambda: triton.infer("rm", chats(chat("1")))) == ("UNAVAILABLE", "bundles are being loaded")
        assert refusal(lambda: triton.get_model_metadata("rm"))[0] == "UNAVAILABLE"
        index = triton.get_model_repository_index(as_json=True)["models"]
        assert [model["state"] for model in index] == ["UNAVAILABLE"]
        may_load.set()
        eventually(triton.is_server_ready)
        assert health(client) == health(client, "inference.GRPCInferenceService") == "SERVING"
        assert triton.infer("rm", chats(chat("1"))).as_numpy("score").tolist() == [1.0]
        with pytest.raises(grpc.RpcError) as caught:
            health(client, "other")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_without_one_of_the_keys_nothing_but_health_is_answered() -> None:
    with serving({"rm": MODEL}, keys=("secret", "other"), grpc=True) as client, triton_of(client) as triton:
        for headers in (None, {"authorization": "Bearer secre"}, {"authorization": "secret"}):
            for call in (
                lambda headers=headers: triton.infer("rm", chats(chat("1")), headers=headers),
                lambda headers=headers: triton.get_model_metadata("rm", headers=headers),
                lambda headers=headers: triton.is_model_ready("rm", headers=headers),
            ):
                assert refusal(call)[0] == "UNAUTHENTICATED"
            assert triton.is_server_ready(headers)
            assert health(client) == "SERVING"
        for key in ("secret", "other"):
            inferred = triton.infer("rm", chats(chat("1")), headers={"authorization": f"Bearer {key}"})
            assert inferred.as_numpy("score").tolist() == [1.0]


def test_calls_are_counted_under_their_method_and_code(gate: Gate) -> None:
    gate.opened.set()
    with serving({"rm": gate.model}, grpc=True) as client, triton_of(client) as triton:
        triton.infer("rm", chats(chat("1")))
        refusal(lambda: triton.infer("rm", chats(chat("NaN"))))
        lines = client.get("/metrics").body.decode().splitlines()
        for code in ("OK", "INVALID_ARGUMENT"):
            assert f'rm_requests_total{{route="{INFER}",status="{code}"}} 1.0' in lines
        assert f'rm_request_seconds_count{{route="{INFER}"}} 2.0' in lines
        assert client.metric("rm_errors_total") == 1
        assert client.metric("rm_rows_total") == 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A score that no batching changes: the mean of a row's ids."""
    return write_scalar_bundle(tmp_path_factory.mktemp("bundles") / "mean")


def test_answers_to_many_clients_are_the_direct_ones(bundle: Path) -> None:
    asked = [{"messages": chat} for chat in conversations(80)]
    direct = [score.score for score in load(bundle).score([request["messages"] for request in asked])]
    with served_process(str(bundle), "--grpc-port", "0") as (_, client, _), ThreadPoolExecutor(8) as pool:

        def scores(start: int) -> list[float]:
            with triton_of(client) as triton:
                groups = [asked[first : first + 3] for first in range(start, len(asked), 8 * 3)]
                return [
                    score
                    for group in groups
                    for score in triton.infer("mean", chats(*group)).as_numpy("score").tolist()
                ]

        found = list(pool.map(scores, range(0, 24, 3)))
    for start, of_client in zip(range(0, 24, 3), found, strict=True):
        assert of_client == [score for first in range(start, len(asked), 24) for score in direct[first : first + 3]]


def test_sigterm_under_load_answers_or_refuses_every_call_it_took(bundle: Path) -> None:
    request = {"messages": QUESTION, "responses": [f"{word} " * 300 for word in "abcdefgh"]}
    with served_process(str(bundle), "--grpc-port", "0") as (process, client, lines):
        expected = client.post("/v1/rank", request).json
        told = threading.Event()
        codes: list[str] = []

        def ask() -> None:
            with triton_of(client) as triton:
                while not told.is_set() or process.poll() is None:
                    try:
                        (reply,) = triton.infer("mean", chats(request)).as_numpy("replies")
                    except InferenceServerException as error:
                        codes.append(error.status())
                        if "stopping" not in error.message():
                            return
                    else:
                        assert json.loads(reply) == expected
                        codes.append("OK")

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(ask) for _ in range(8)]
            eventually(lambda: len(codes) >= 16)
            process.send_signal(signal.SIGTERM)
            told.set()
            for one in clients:
                one.result(PATIENCE)
        assert process.wait(PATIENCE) == 0
        # what comes while gRPC closes its port is cancelled by gRPC, unread (github.com/grpc/grpc/issues/41785)
        assert set(codes) <= {"OK", "StatusCode.UNAVAILABLE", "StatusCode.CANCELLED"}
        eventually(lambda: any('"stopped"' in line for line in lines))
        answered = [json.loads(line)["status"] for line in lines if INFER in line]
        assert set(answered) <= {"OK", "UNAVAILABLE"}, "no call that the server took was cancelled"
        assert answered.count("OK") == codes.count("OK"), "every answer that was made has arrived"


def test_a_call_that_outlasts_the_drain_is_told_unavailable(bundle: Path) -> None:
    request = {"messages": QUESTION, "responses": ["word " * 3000] * 200}
    long = ["--drain", "0", "--max-body-bytes", str(2**26), "--max-queue-tokens", str(2**24)]
    with (
        served_process(str(bundle), "--grpc-port", "0", *long) as (process, client, _),
        triton_of(client) as triton,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(refusal, lambda: triton.infer("mean", chats(request)))
        eventually(lambda: client.metric("rm_requests_in_flight") == 1)
        process.send_signal(signal.SIGTERM)
        code, line = waiting.result(PATIENCE)
        assert (code, "stopped before it came to this request" in line) == ("UNAVAILABLE", True)
        assert process.wait(PATIENCE) == 0


def test_logs_hold_no_text_of_clients_unless_asked(bundle: Path) -> None:
    secret = {"messages": [{"role": "user", "content": "xyzzy"}, {"role": "assistant", "content": "plugh"}]}
    for flags, logged in (((), False), (("--log-prompts",), True)):
        with served_process(str(bundle), "--grpc-port", "0", *flags) as (_, client, lines), triton_of(client) as triton:
            triton.infer("mean", chats(secret))
            refusal(lambda triton=triton: triton.infer("mean", chats({"messages": [{"role": "xyzzy"}]})))
            refusal(lambda triton=triton: triton.infer("mean", chats(secret), compression_algorithm="gzip"))
            eventually(lambda lines=lines: sum(INFER in line for line in lines) == 3)
        assert ("xyzzy" in "".join(lines)) == logged
        first, second, third = (line for line in map(json.loads, lines) if line.get("route") == INFER)
        assert (first["status"], first["model"], first["rows"]) == ("OK", "mean", 1)
        assert (second["status"], second["error"]) == ("INVALID_ARGUMENT", "ScoringError")
        assert third["status"] == "CANCELLED", "by gRPC, which refuses compressed messages itself"


def described(message: DescriptorProto, path: str = "") -> Iterator[tuple[Any, ...]]:
    """Every field of a message and of those within: its message, name, number, type, repetition, oneof."""
    here = f"{path}.{message.name}"
    yield (here, message.options.map_entry)
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
        yield (here, field.name, field.number, field.type, field.type_name, field.label, oneof)
    for nested in message.nested_type:
        yield from described(nested, here)


def test_every_message_is_the_one_that_tritonclient_has() -> None:
    from tritonclient.grpc import service_pb2

    theirs = FileDescriptorProto.FromString(service_pb2.DESCRIPTOR.serialized_pb)
    mine = FileDescriptorProto()
    ours.POOL.FindFileByName("open_inference.proto").CopyToProto(mine)
    assert (mine.package, mine.syntax) == (theirs.package, theirs.syntax)
    by_name = {message.name: message for message in theirs.message_type}
    for message in mine.message_type:
        assert set(described(message)) == set(described(by_name[message.name]))
    methods = {method.name: method for method in theirs.service[0].method}
    assert mine.service[0].name == theirs.service[0].name
    for method in mine.service[0].method:
        of_theirs = methods[method.name]
        assert (method.input_type, method.output_type) == (of_theirs.input_type, of_theirs.output_type)
        assert (method.client_streaming, method.server_streaming) == (False, False)
        assert (of_theirs.client_streaming, of_theirs.server_streaming) == (False, False)


def test_the_compiled_protocol_is_its_source(tmp_path: Path) -> None:
    from grpc_tools import protoc

    folder = Path(ours.__file__).parent
    compiled = tmp_path / "compiled"
    arguments = [f"-I{folder}", f"--descriptor_set_out={compiled}", str(folder / "open_inference.proto")]
    assert protoc.main(["protoc", *arguments]) == 0
    committed = FileDescriptorSet.FromString((folder / "open_inference.binpb").read_bytes())
    assert FileDescriptorSet.FromString(compiled.read_bytes()) == committed


def test_every_declared_method_is_answered() -> None:
    from rm_runtime.serving.grpc.methods import QUESTIONS

    service = ours.POOL.FindServiceByName(ours.SERVICE)
    assert {method.name for method in service.methods} == {*QUESTIONS, "ModelInfer"}


def test_a_client_is_its_key_or_its_address_as_over_http(gate: Gate) -> None:
    for keys in ((), ("bulk", "interactive")):
        gate.opened.clear()
        gate.entered.clear()
        with (
            serving({"rm": gate.model}, keys=keys, grpc=True, max_queue_rows=4) as client,
            ThreadPoolExecutor(3) as pool,
            triton_of(client) as triton,
        ):
            asked = [pool.submit(client.post, "/v1/score", chat("1"))]
            assert gate.entered.wait(PATIENCE)
            four = {"messages": QUESTION, "responses": ["1", "2", "3", "4"]}
            asked.append(pool.submit(client.post, "/v1/score", four))
            eventually(lambda client=client: client.metric("rm_waiting_rows") == 4)
            same = {"authorization": f"Bearer {client.key}"} if keys else {"x-forwarded-for": "192.0.2.1"}
            assert (
                refusal(lambda same=same: triton.infer("rm", chats(chat("5")), headers=same))[0] == "RESOURCE_EXHAUSTED"
            )
            if keys:
                other = {"authorization": "Bearer interactive"}
                waiting = pool.submit(triton.infer, "rm", chats(chat("5")), headers=other)
                eventually(lambda client=client: client.metric("rm_waiting_rows") == 5)
            gate.opened.set()
            assert [one.result().status for one in asked] == [200, 200]
            if keys:
                assert waiting.result().as_numpy("score").tolist() == [5.0]


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:50000", "127.0.0.1"),
        ("ipv6:%5B::1%5D:50000", "::1"),
        ("ipv6:[::1]:50000", "::1"),
        ("unix:", ""),
    ],
)
def test_a_peers_port_is_no_part_of_who_it_is(peer: str, address: str) -> None:
    assert address_of(peer) == address
