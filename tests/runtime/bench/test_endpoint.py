"""rm-runtime bench --url: a server measured as its clients see it, in the report of the local benchmark."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fake_models import pair_pm, pointwise, write_scalar_bundle
from rm_runtime import EngineError, RequestError, load
from rm_runtime.bench import endpoint as endpoint_module
from rm_runtime.bench.comparison import comparison_lines
from rm_runtime.bench.endpoint import Connection, find_endpoint, replies_of
from rm_runtime.bench.endpoint_contender import EndpointContender, EndpointSpec, answers_to_ask
from rm_runtime.bench.measure import BenchSettings, bench
from rm_runtime.bench.plot import svg
from rm_runtime.bench.report_schema import report_fault
from rm_runtime.bench.scenarios import serve_live
from rm_runtime.bench.table import report_lines
from rm_runtime.cli import main
from served import Client, serving

FEW: dict[str, Any] = {"queries": 4, "warmup": 1, "rounds": 2, "connections": 3}
POINTWISE = pointwise(lambda rendered: {"score": float(len(rendered))})
PAIRWISE = pair_pm(lambda a, b: (float(len(a)), float(len(b))))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scalar_bundle(tmp_path_factory.mktemp("bundles") / "scalar")


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[Client]:
    with serving({"scalar": load(bundle, threads=1)}) as running:
        yield running


def url(client: Client) -> str:
    return f"http://127.0.0.1:{client.port}"


def test_a_server_is_measured_in_all_scenarios(client: Client) -> None:
    report = bench(None, BenchSettings(urls=(url(client),), **FEW))
    assert report_fault(report) is None
    (served,) = report["contenders"]
    assert served["failure"] is None
    assert served["engine"] == "rm-runtime"
    assert served["single_stream"]["queries"] == 4
    assert len(served["offline"]["rounds"]) == 2
    assert served["server"]["throughput"] > 0
    assert (report["bundle"], report["auto"], served["load_seconds"], served["peak_bytes"]) == (None, None, None, None)
    lines = list(report_lines(report))
    assert "ids, estimated at 1.3 a word" in lines[1]
    assert any("tokenisation and network" in line for line in lines)
    assert url(client) in svg(report)
    assert next(comparison_lines(report, report)).startswith(url(client))


def test_a_server_stands_beside_a_bundles_engines_on_the_same_chats(client: Client, bundle: Path) -> None:
    before = client.metric("rm_rows_total")
    settings = BenchSettings(("onnxruntime",), scenarios=("offline",), threads=1, urls=(url(client),), **FEW)
    report = bench(bundle, settings)
    assert report_fault(report) is None
    engine, served = report["contenders"]
    assert (engine["name"], served["name"]) == ("onnxruntime", url(client))
    assert [one["offline"]["seconds"] > 0 for one in (engine, served)] == [True, True]
    assert "ids_per_word" not in report["rows"]["origin"]
    asked = client.metric("rm_rows_total") - before
    assert asked == 1 + 2 + 2 * 4, "the first row, the warm-up, two rounds"


def test_rows_go_one_a_request_and_several_at_once(client: Client) -> None:
    requests = ['{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}'] * 8
    contender = EndpointContender(EndpointSpec(url(client), None, 4), requests)
    before = client.metric("rm_request_seconds_count")
    answered = contender.answered_at(range(8), [0.0] * 8)
    assert contender.close() is None
    assert all(seconds > 0 for seconds in answered)
    assert client.metric("rm_request_seconds_count") - before >= 8


def test_a_row_is_asked_when_it_arrives_and_its_wait_counts(client: Client) -> None:
    requests = ['{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}'] * 3
    contender = EndpointContender(EndpointSpec(url(client), None, 1), requests)
    arriving = [0.0, 0.05, 0.1]
    answered = contender.answered_at(range(3), arriving)
    contender.stop()
    assert all(end > arrival for end, arrival in zip(answered, arriving, strict=True))
    late = serve_live(lambda rows, arriving: [3.0 for _ in rows], 1.0, [0.0, 1.0, 2.0], 1500.0)
    assert (late.p50_ms, late.throughput, late.goodput, late.met) == (2000.0, 1.0, 1 / 3, False)


def test_a_rate_is_not_tried_for_longer_than_it_takes_to_tell() -> None:
    sent: list[list[float]] = []

    def arrive(rows: Sequence[int], arriving: Sequence[float]) -> list[float]:
        sent.append(list(arriving))
        return [arrival + 0.5 for arrival in arriving]

    slow = serve_live(arrive, 0.1, [10.0 * row for row in range(100)], 1000.0)
    fast = serve_live(arrive, 10.0, [0.1 * row for row in range(100)], 1000.0)
    later = serve_live(arrive, 2.0, [0.5 * row for row in range(100)], 1000.0)
    assert [len(rows) for rows in sent] == [16, 100, 41]
    assert (slow.p50_ms, fast.p50_ms, later.p50_ms) == (500.0, 500.0, 500.0)


def test_what_a_model_scores_is_found_out_by_asking() -> None:
    with serving({"one": POINTWISE}) as running:
        assert answers_to_ask(url(running), None) == 1
    with serving({"two": PAIRWISE}) as running:
        assert answers_to_ask(url(running), None) == 2
        (pairwise,) = bench(None, BenchSettings(urls=(url(running),), scenarios=("offline",), **FEW))["contenders"]
        assert pairwise["offline"]["conversations_per_second"] > 0


def test_a_model_is_named_where_there_are_several() -> None:
    with serving({"one": POINTWISE, "two": PAIRWISE}) as running:
        connection = Connection(url(running))
        with pytest.raises(EngineError, match=r"several models that answer chats: --model one \| two"):
            find_endpoint(connection, None)
        assert find_endpoint(connection, "two").model == "two"
        with pytest.raises(
            EngineError, match="has no model 'three' that takes chats and gives replies; it has one, two"
        ):
            find_endpoint(connection, "three")
        connection.close()


def test_the_servers_own_reason_ends_a_measurement(client: Client) -> None:
    with pytest.raises(EngineError, match="answered 422: 1 of 1 rows could not be scored: row 0: message 0"):
        EndpointContender(EndpointSpec(url(client), None, 1), ['{"messages": [{"role": "user"}]}'])


def test_an_api_key_comes_from_the_environment(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({"one": POINTWISE}, keys=("secret",)) as running:
        with pytest.raises(EngineError, match="wants an API key; put it into the environment, RM_RUNTIME_API_KEYS"):
            answers_to_ask(url(running), None)
        monkeypatch.setenv("RM_RUNTIME_API_KEYS", "secret other")
        assert answers_to_ask(url(running), None) == 1


class _Answers(BaseHTTPRequestHandler):
    """Answers every request with what the test put here, and hangs up after each, saying nothing of it."""

    status = 200
    answer = b"hello"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(self.status)
        self.send_header("content-length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)
        self.close_connection = True

    do_POST = do_GET  # noqa: N815  # http.server's names

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_connection_that_the_server_closed_is_opened_anew(answering: str) -> None:
    connection = Connection(answering)
    assert [connection.ask("GET", "/")[0] for _ in range(3)] == [200] * 3
    connection.close()


@pytest.mark.parametrize(("status", "answer"), [(200, b"<html>"), (200, b"[]"), (404, b"{}"), (200, b'{"name": 5}')])
def test_what_is_no_server_of_the_protocol_is_said_to_be_none(
    answering: str, monkeypatch: pytest.MonkeyPatch, status: int, answer: bytes
) -> None:
    monkeypatch.setattr(_Answers, "status", status)
    monkeypatch.setattr(_Answers, "answer", answer)
    with pytest.raises(EngineError, match="is no server of the KServe protocol v2"):
        find_endpoint(Connection(answering), None)


def test_a_server_without_models_that_answer_chats_is_told_apart(
    answering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Answers, "answer", json.dumps({"name": "x", "inputs": [], "outputs": []}).encode())
    with pytest.raises(EngineError, match="names no model that takes chats"):
        find_endpoint(Connection(answering), None)
    with pytest.raises(EngineError, match=r"has no model 'rm' that takes chats and gives replies$"):
        find_endpoint(Connection(answering), "rm")


def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "TIMEOUT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(EngineError, match=r"did not answer within 0\.05 s"):
            Connection(f"http://127.0.0.1:{silent.getsockname()[1]}").ask("GET", "/v2")
        port = silent.getsockname()[1]
    with pytest.raises(EngineError, match=f"nothing listens at http://127.0.0.1:{port}; start the server"):
        Connection(f"http://127.0.0.1:{port}").ask("GET", "/v2")


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8000", "ftp://x", "http://", "http://x/v2/models", "http://x:port", "http://x?a=b"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(RequestError):
        Connection(address)


def test_a_server_that_fails_on_the_way_keeps_its_reason_and_the_others_their_figures(
    bundle: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered_at = EndpointContender.answered_at
    asked: list[int] = []

    def failing(self: EndpointContender, rows: Any, arriving: Any) -> list[float]:
        asked.append(len(rows))
        if len(asked) > 5:
            raise EngineError("it went away")
        return answered_at(self, rows, arriving)

    monkeypatch.setattr(EndpointContender, "answered_at", failing)
    report = bench(bundle, BenchSettings(("onnxruntime",), threads=1, urls=(url(client),), **FEW))
    engine, served = report["contenders"]
    assert served["failure"] == "it went away"
    assert "server" not in served
    assert engine["server"]["throughput"] > 0


def test_the_command_measures_a_server(client: Client, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--queries", "3", "--warmup", "1", "--rounds", "1", "--scenario", "offline", "--rate", "50"]
    assert main(["bench", "--url", url(client), *flags, "--json", str(tmp_path / "r.json")]) == 0
    assert url(client) in capfd.readouterr().out
    assert report_fault(json.loads((tmp_path / "r.json").read_text())) is None
    assert main(["bench", "--url", "localhost", *flags]) == 1
    assert "write an address as in http://127.0.0.1:8000" in capfd.readouterr().err
    assert main(["bench", "--url", url(client), "--compare", "a", "b"]) == 2


def test_replies_are_those_of_the_model(client: Client, bundle: Path) -> None:
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    connection = Connection(url(client))
    found = find_endpoint(connection, None)
    body = found.body([json.dumps({"messages": chat})])
    with ThreadPoolExecutor(1) as pool:
        (reply,) = pool.submit(replies_of, connection, found, body).result(timeout=30)
    connection.close()
    assert json.loads(reply) == load(bundle, threads=1).score([chat])[0].as_json()
