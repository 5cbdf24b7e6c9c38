"""What the server answers besides scores: full, too large, too late, not ready, not allowed, not JSON."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from fake_models import Gate, answer_of, pair_pm, pointwise
from rm_runtime.serving.supervisor import listening
from served import PATIENCE, Client, Reply, eventually, serving

QUESTION = [{"role": "user", "content": "How many?"}]


def chat(answer: str) -> dict[str, Any]:
    return {"messages": [*QUESTION, {"role": "assistant", "content": answer}]}


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()


@pytest.fixture
def open_gate(gate: Gate) -> Gate:
    gate.opened.set()
    return gate


def in_threads(client: Client, *documents: Any) -> list[Future[Reply]]:
    pool = ThreadPoolExecutor(max(1, len(documents)))
    asked = [pool.submit(client.post, "/v1/score", document) for document in documents]
    pool.shutdown(wait=False)
    return asked


def test_a_full_queue_is_429_with_a_time_to_come_back(gate: Gate) -> None:
    with serving({"rm": gate.model}, max_queue_rows=2) as client:
        waiting = in_threads(client, chat("1"))
        assert gate.entered.wait(PATIENCE)
        waiting += in_threads(client, {"messages": QUESTION, "responses": ["2", "3"]})
        eventually(lambda: client.metric("rm_waiting_rows") == 2)
        refused = client.post("/v1/score", chat("4"))
        assert (refused.status, refused.json["error_type"]) == (429, "QueueFullError")
        assert int(refused.headers["retry-after"]) >= 1
        gate.opened.set()
        assert waiting[0].result().json == {"score": 1.0}
        assert waiting[1].result().json == {"ranks": [2, 1], "scores": [2.0, 3.0]}


def test_too_many_requests_at_once_are_429(gate: Gate) -> None:
    with serving({"rm": gate.model}, max_requests=1) as client:
        (waiting,) = in_threads(client, chat("1"))
        assert gate.entered.wait(PATIENCE)
        assert client.post("/v1/score", chat("2")).status == 429
        gate.opened.set()
        assert waiting.result().status == 200


def test_bodies_that_are_too_large_together_are_429_until_one_is_answered(gate: Gate) -> None:
    with serving({"rm": gate.model}, max_body_bytes=1000) as client:
        waiting = in_threads(client, *[chat("1" + " " * 800)] * 17)
        assert gate.entered.wait(PATIENCE)
        eventually(lambda: client.metric("rm_requests_in_flight") == 17)
        eventually(lambda: client.post("/v1/score", chat("2" + " " * 800)).status == 429)
        gate.opened.set()
        assert {one.result().status for one in waiting} == {200}
        assert client.post("/v1/score", chat("2" + " " * 800)).json == {"score": 2.0}


@pytest.mark.parametrize(
    ("limits", "document", "reason"),
    [
        ({"max_body_bytes": 1000}, chat("1" * 1000), "1000 is the limit"),
        ({"max_rows": 3}, {"messages": QUESTION, "responses": ["1"] * 4}, "makes 4 prompts, 3 is the limit"),
        ({"max_rows": 3}, {"requests": [chat("1")] * 4}, "makes 4 prompts"),
        ({"max_rows": 3}, {"requests": ["not even a request"] * 4}, "makes 4 prompts"),
        ({"max_queue_tokens": 5}, chat("1"), "5 tokens"),
        (
            {"max_body_bytes": 5000},
            {"messages": [{"role": "user", "content": "w" * 2000}], "responses": ["1"] * 30},
            "characters",
        ),
    ],
)
def test_too_large_a_request_is_413(
    open_gate: Gate, limits: dict[str, int], document: dict[str, Any], reason: str
) -> None:
    with serving({"rm": open_gate.model}, **limits) as client:
        refused = client.post("/v1/score", document)
        assert refused.status == 413
        assert reason in refused.json["error"]


def test_a_pairwise_request_counts_the_comparisons_it_makes() -> None:
    with serving({"rm": pair_pm(lambda a, b: (float(a), float(b)))}, max_rows=7) as client:
        rank = {"messages": QUESTION, "responses": ["1", "2", "3", "4"]}
        assert client.post("/v1/rank", rank).status == 200
        assert client.post("/v1/rank", {**rank, "responses": ["1", "2", "3", "4", "5"]}).status == 413
        assert client.post("/v1/rank", {**rank, "details": True}).status == 413


def test_rows_that_cannot_be_scored_are_422_and_named(open_gate: Gate) -> None:
    with serving({"rm": open_gate.model}) as client:
        refused = client.post("/v1/score", {"requests": [chat("1"), chat("NaN"), {"messages": []}]})
        assert refused.status == 422
        rows = refused.json["rows"]
        assert [row["row"] for row in rows] == [1, 2]
        assert "no number" in rows[0]["error"]
        assert "empty" in rows[1]["error"]


def test_errors_return_puts_them_in_their_rows_places(open_gate: Gate) -> None:
    with serving({"rm": open_gate.model}) as client:
        answered = client.post("/v1/score", {"requests": [chat("1"), chat("NaN"), chat("3")], "errors": "return"})
        assert answered.status == 200
        first, second, third = answered.json["replies"]
        assert (first, third) == ({"score": 1.0}, {"score": 3.0})
        assert "no number" in second["error"]


def test_a_request_past_its_deadline_is_504_and_leaves_the_queue(gate: Gate) -> None:
    with serving({"rm": gate.model}, timeout_seconds=0.2) as client:
        waiting = in_threads(client, chat("1"))
        assert gate.entered.wait(PATIENCE)
        late = client.post("/v1/score", chat("2"))
        assert (late.status, late.json["error"]) == (504, "not answered within 0.2 seconds")
        assert client.metric("rm_waiting_rows") == 0
        gate.opened.set()
        assert waiting[0].result().status == 504


def test_a_client_that_hangs_up_leaves_the_queue(gate: Gate) -> None:
    with serving({"rm": gate.model}) as client:
        waiting = in_threads(client, chat("1"))
        assert gate.entered.wait(PATIENCE)
        connection = http.client.HTTPConnection("127.0.0.1", client.port)
        connection.request("POST", "/v1/score", json.dumps(chat("2")))
        eventually(lambda: client.metric("rm_waiting_rows") == 1)
        connection.close()
        eventually(lambda: client.metric("rm_waiting_rows") == 0)
        gate.opened.set()
        assert waiting[0].result().json == {"score": 1.0}


def test_a_bundle_that_is_being_loaded_is_503_and_the_process_is_live(open_gate: Gate) -> None:
    may_load = threading.Event()

    def load() -> Any:
        assert may_load.wait(PATIENCE)
        return open_gate.model

    with serving({"rm": load}) as client:
        for path in ("/health", "/v2/health/ready", "/v2/models/rm/ready"):
            refused = client.get(path)
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert client.post("/v1/score", chat("1")).status == 503
        assert client.get("/v2/health/live").status == 200
        may_load.set()
        eventually(lambda: client.get("/v2/models/rm/ready").status == 200)
        assert client.post("/v1/score", chat("1")).json == {"score": 1.0}


def test_an_engine_that_fails_is_500_and_the_next_request_is_fine(open_gate: Gate) -> None:
    with serving({"rm": open_gate.model}) as client:
        failed = client.post("/v1/score", chat("no number"))
        assert (failed.status, failed.json["error_type"]) == (500, "EngineError")
        assert client.post("/v1/score", chat("1")).json == {"score": 1.0}


DEEP = b'{"messages": ' + b"[" * 100_000


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b'{"messages": [{"role": "us', 400),
        (b"\xff\xfe{}", 400),
        (DEEP, 400),
        (b'{"score": NaN}', 400),
        (b"[1" + b"0" * 5000 + b"]", 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"messages": {}}', 422),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 422),
        (b'{"messages": [{"role": "user", "content": 1}]}', 422),
        (b'{"requests": 1}', 422),
        (b'{"requests": [], "errors": "ignore"}', 422),
        (b'{"messages": [], "model": 1}', 422),
        (b'{"messages": [], "model": "\\ud800"}', 404),
        (b" " * 50_000_000, 413),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else str(value),
)
def test_a_bad_body_is_refused_and_the_next_request_is_fine(scoring: Client, body: bytes, status: int) -> None:
    refused = scoring.ask("POST", "/v1/score", body)
    assert refused.status == status
    assert refused.json["error"]
    assert "\n" not in refused.json["error"]
    assert scoring.post("/v1/score", chat("1")).json == {"score": 1.0}


@pytest.fixture(scope="module")
def scoring() -> Iterator[Client]:
    gate = Gate()
    gate.opened.set()
    with serving({"rm": gate.model}, body_seconds=0.3) as client:
        yield client


def test_a_body_that_does_not_come_is_408_and_its_connection_ends(scoring: Client) -> None:
    with socket.create_connection(("127.0.0.1", scoring.port), PATIENCE) as slow:
        slow.sendall(b"POST /v1/score HTTP/1.1\r\nhost: here\r\ncontent-length: 100\r\n\r\n{")
        answer = b""
        while piece := slow.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert scoring.post("/v1/score", chat("1")).status == 200


def test_a_body_of_unknown_length_is_refused_while_it_still_comes(open_gate: Gate) -> None:
    with (
        serving({"rm": open_gate.model}, max_body_bytes=1000) as client,
        socket.create_connection(("127.0.0.1", client.port), PATIENCE) as endless,
    ):
        endless.sendall(b"POST /v1/score HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n")
        endless.sendall(b"3e9\r\n" + b" " * 1001 + b"\r\n")
        assert endless.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_what_is_not_served_is_404_and_405_as_json(scoring: Client) -> None:
    assert scoring.get("/v3").status == 404
    assert scoring.get("/v1/score").status == 405
    assert "error" in scoring.get("/v1/score").json
    assert scoring.post("/v1/score", {**chat("1"), "model": "other"}).status == 404


def test_the_first_bundle_is_the_default_and_others_are_asked_by_name(open_gate: Gate) -> None:
    double = pointwise(lambda rendered: {"score": 2 * float(answer_of(rendered))})
    with serving({"one": open_gate.model, "two": double}) as client:
        assert client.post("/v1/score", chat("3")).json == {"score": 3.0}
        assert client.post("/v1/score", {**chat("3"), "model": "two"}).json == {"score": 6.0}
        assert [model["id"] for model in client.get("/v1/models").json["data"]] == ["one", "two"]


def test_without_one_of_the_keys_nothing_but_health_and_the_page_is_answered(open_gate: Gate) -> None:
    with serving({"rm": open_gate.model}, keys=("secret", "other")) as client:
        assert client.post("/v1/score", chat("1")).status == 200
        assert Client(client.port, "other").post("/v1/score", chat("1")).status == 200
        for wrong in (None, "secre", "secrets", "sécret"):
            asked = Client(client.port, wrong)
            refused = asked.post("/v1/score", chat("1"))
            assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert asked.get("/metrics").status == 401
            assert asked.get("/health").status == 200
            assert asked.get("/").status == 200


def test_a_client_is_its_key_or_its_address_and_never_what_it_says_of_itself(gate: Gate) -> None:
    four, one = {"messages": QUESTION, "responses": ["1", "2", "3", "4"]}, json.dumps(chat("5")).encode()
    for keys in ((), ("bulk", "interactive")):
        gate.opened.clear()
        gate.entered.clear()
        with serving({"rm": gate.model}, keys=keys, max_queue_rows=4) as client:
            waiting = in_threads(client, chat("0"))
            assert gate.entered.wait(PATIENCE)
            waiting += in_threads(client, four)
            eventually(lambda client=client: client.metric("rm_waiting_rows") == 4)
            assert client.ask("POST", "/v1/score", one, x_forwarded_for="192.0.2.1").status == 429
            if keys:
                waiting += in_threads(Client(client.port, "interactive"), chat("5"))
                eventually(lambda client=client: client.metric("rm_waiting_rows") == 5)
            gate.opened.set()
            assert {reply.result().status for reply in waiting} == {200}


def test_too_long_a_wait_is_429_until_it_is_over(gate: Gate) -> None:
    """What waits is expected to take as long as the row that the shut gate held up."""
    with serving({"rm": gate.model}, max_wait_seconds=0.05) as client:
        held = in_threads(client, chat("0"))
        assert gate.entered.wait(PATIENCE)
        time.sleep(0.2)  # an engine that took so long for its first row
        gate.opened.set()
        assert held[0].result().status == 200
        gate.opened.clear()
        gate.entered.clear()
        waiting = in_threads(client, chat("1"))
        assert gate.entered.wait(PATIENCE)
        eventually(lambda: client.metric("rm_expected_wait_seconds") == 0)  # it should be over by now
        waiting += in_threads(client, chat("2"))
        eventually(lambda: client.metric("rm_waiting_rows") == 1)
        assert client.metric("rm_expected_wait_seconds") > 0.1
        refused = client.post("/v1/score", chat("3"))
        assert refused.status == 429
        assert int(refused.headers["retry-after"]) >= 1
        gate.opened.set()
        assert {reply.result().status for reply in waiting} == {200}
        eventually(lambda: client.metric("rm_expected_wait_seconds") == 0)
        assert client.post("/v1/score", chat("3")).status == 200


def test_metrics_count_requests_rows_waiting_times_and_padding(open_gate: Gate) -> None:
    with serving({"rm": open_gate.model}) as client:
        client.post("/v1/score", {"messages": QUESTION, "responses": ["1", "1" * 20, "3"]})
        client.post("/v1/score", chat("NaN"))
        assert client.metric("rm_requests_total") == 2
        assert client.metric("rm_errors_total") == 1
        assert client.metric("rm_rows_total") == 4
        assert client.metric("rm_padding_tokens_total") > 0
        assert client.metric("rm_queue_seconds_count") == 2
        assert client.metric("rm_batch_tokens_count") == 2
        assert client.metric("process_resident_memory_bytes") > 0


def test_the_openapi_document_has_every_route_and_every_example_is_understood(scoring: Client) -> None:
    from rm_runtime.serving.routes import GET_ROUTES, POST_ROUTES

    document = scoring.get("/openapi.json").json
    assert set(document["paths"]) == {*GET_ROUTES, *(route.path for route in POST_ROUTES)}
    for path, methods in document["paths"].items():
        method = "post" if "post" in methods else "get"
        described = methods[method]
        example = described.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
        answered = scoring.ask(method.upper(), path.format(model="rm"), example and json.dumps(example).encode())
        # the fake model reads numbers only: an example may fail in its engine or for its text, never for its form
        assert answered.status not in (400, 404, 405), path
    page = scoring.get("/docs").body.decode()
    assert "/v1/score" in page
    assert "http" not in page.replace("HTTP", ""), "the page needs nothing from elsewhere"


def test_small_answers_are_sent_at_once() -> None:
    with listening("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP, "asyncio sets TCP_NODELAY on such sockets only"
