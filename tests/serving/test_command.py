"""`rm-runtime serve` as people run it: a process, a bundle on disk, signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpoints
from conversations import conversations
from fake_models import write_scalar_bundle
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_runtime import load
from rm_runtime.cli import main
from served import PATIENCE, Client, environment, eventually, served_process

TOLERANCE = 1e-5
"""Of float32 scores, relative to their standard deviation: as for shared prefixes (test_shared_prefix.py)."""

QUESTION = [{"role": "user", "content": "How do tides come about?"}]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A score that no batching changes: the mean of a row's ids."""
    return write_scalar_bundle(tmp_path_factory.mktemp("bundles") / "mean")


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[Client]:
    with served_process(str(bundle)) as (_, client, _):
        yield client


def test_answers_under_concurrency_are_the_direct_ones(bundle: Path, served: Client) -> None:
    requests = [{"messages": chat} for chat in conversations(80)]
    requests += [
        {"messages": chat[:-1], "responses": ["Yes.", "No!", "Yes.", chat[-1]["content"]]} for chat in conversations(40)
    ]
    model = load(bundle)
    direct = []
    for request in requests:
        if "responses" in request:
            direct.append(model.rank(request["messages"], request["responses"]).as_json())
        else:
            direct.append(model.score([request["messages"]])[0].as_json())
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(partial(served.post, "/v1/score"), requests))
    assert [reply.status for reply in replies] == [200] * len(requests)
    assert [reply.json for reply in replies] == direct


@pytest.mark.parametrize("maker", [checkpoints.armorm, checkpoints.pair_pm, checkpoints.pairrm])
def test_a_real_graph_scores_alike_whoever_else_asks(tmp_path: Path, maker: Any) -> None:
    bundle = export_checkpoint(open_checkpoint(maker(tmp_path / "checkpoint")), tmp_path / "bundle")
    answers = [
        chat[-1]["content"] for chat in conversations(60, special_text=False) if 10 < len(chat[-1]["content"]) < 400
    ]
    groups = [answers[start : start + 3] for start in range(0, 30, 3)]
    model = load(bundle, threads=1)
    direct = np.array([model.rank(QUESTION, group).scores for group in groups])
    with served_process(str(bundle)) as (_, client, _), ThreadPoolExecutor(8) as pool:
        asked = [{"messages": QUESTION, "responses": group} for group in groups]
        replies = list(pool.map(partial(client.post, "/v1/rank"), asked * 3))
    scores = np.array([reply.json["scores"] for reply in replies]).reshape(3, *direct.shape)
    assert np.abs(scores - direct).max() <= TOLERANCE * direct.std()


def test_sigterm_under_load_answers_or_refuses_every_request_it_took(bundle: Path) -> None:
    document = {"messages": QUESTION, "responses": [f"{word} " * 300 for word in "abcdefgh"]}
    with served_process(str(bundle)) as (process, client, lines):
        expected = client.post("/v1/rank", document).json
        statuses: list[int] = []
        unreached: list[OSError] = []
        told = threading.Event()

        def ask() -> None:
            while not told.is_set() or process.poll() is None:
                try:
                    reply = client.post("/v1/rank", document)
                except ConnectionRefusedError:
                    return
                except OSError as error:  # reset while it connected: the server never read it
                    unreached.append(error)
                    return
                statuses.append(reply.status)
                assert reply.status == 503 or reply.json == expected

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(ask) for _ in range(8)]
            eventually(lambda: len(statuses) >= 16)
            process.send_signal(signal.SIGTERM)
            told.set()
            for one in clients:
                one.result(PATIENCE)
        assert process.wait(PATIENCE) == 0
        assert set(statuses) <= {200, 503}
        eventually(lambda: any('"stopped"' in line for line in lines))
        answered = [json.loads(line)["status"] for line in lines if '"event": "request"' in line]
        assert len(answered) <= len(statuses) + 1 + len(unreached)
        assert answered.count(200) == statuses.count(200) + 1, "every answer that was made has arrived"


def test_a_request_that_outlasts_the_drain_is_told_503(bundle: Path) -> None:
    body = json.dumps({"messages": [*QUESTION, {"role": "assistant", "content": "So."}]}).encode()
    head = f"POST /v1/score HTTP/1.1\r\nhost: here\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with served_process(str(bundle), "--drain", "0.2") as (process, client, _):
        with socket.create_connection(("127.0.0.1", client.port), PATIENCE) as slow:
            slow.sendall(head + body[:-1])
            eventually(lambda: client.metric("rm_requests_in_flight") == 1)
            process.send_signal(signal.SIGTERM)
            eventually(lambda: refuses_connections(client))
            slow.sendall(body[-1:])
            assert slow.recv(4096).startswith(b"HTTP/1.1 503 ")
        assert process.wait(PATIENCE) == 0


def refuses_connections(client: Client) -> bool:
    try:
        client.get("/health")
    except OSError:
        return True
    return False


def test_logs_hold_no_text_of_clients_unless_asked(bundle: Path) -> None:
    secret = [{"role": "user", "content": "xyzzy"}, {"role": "assistant", "content": "plugh"}]
    for flags, logged in (((), False), (("--log-prompts",), True)):
        with served_process(str(bundle), *flags) as (_, client, lines):
            client.post("/v1/score", {"messages": secret})
            client.post("/v1/score", {"messages": [{"role": "xyzzy"}]})
            client.ask("POST", "/v1/score", b"xyzzy")
            eventually(lambda: sum('"event": "request"' in line for line in lines) == 3)
        text = "".join(lines)
        assert ("xyzzy" in text) == logged
        requests = [json.loads(line) for line in lines if '"event": "request"' in line]
        assert [request["status"] for request in requests] == [200, 422, 400]


def test_keys_come_from_a_file_or_the_environment(bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("of-file\nanother\n")
    with served_process(str(bundle), "--api-key-file", str(keys), RM_RUNTIME_API_KEYS="of-environment") as (
        _,
        client,
        _,
    ):
        for key, status in (("of-file", 200), ("another", 200), ("of-environment", 200), ("", 401)):
            assert Client(client.port, key).get("/v1/models").status == status


def test_a_bundle_with_a_wrong_hash_is_not_served(bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in bundle.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    graph = bytearray((damaged / "model.onnx").read_bytes())
    graph[-1] ^= 1
    (damaged / "model.onnx").write_bytes(graph)
    ended = command(str(damaged), "--port", "0", "--grpc-port", "0")
    assert ended.returncode == 1
    assert "does not match its sha256" in ended.stderr.splitlines()[-1]
    assert ended.stderr.count("worker started") == 1, "nothing is tried again that would fail again"


@pytest.mark.parametrize(
    ("ports", "advice"),
    [(("--port", "TAKEN"), ""), (("--port", "0", "--grpc-port", "TAKEN"), " --grpc-port, or --no-grpc")],
)
def test_a_port_that_is_taken_is_one_line(bundle: Path, ports: tuple[str, ...], advice: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = command(str(bundle), *(port if option == "TAKEN" else option for option in ports))
    assert ended.returncode == 1
    assert [line for line in ended.stderr.splitlines() if '"level": "info"' not in line] == [
        f"rm-runtime: error: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another{advice}"
    ]


def test_without_grpcio_it_serves_http_alone_when_told_so(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("raise ModuleNotFoundError('there is no grpc', name='grpc')")
    without = {**environment(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"}
    asked = [sys.executable, "-m", "rm_runtime", "serve", str(bundle), "--port", "0"]
    ended = subprocess.run(asked, env=without, check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith(
        "needs the package grpc; pip install 'rm-export[serve]', or --no-grpc"
    )
    with subprocess.Popen([*asked, "--no-grpc"], env=without, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = json.loads(process.stderr.readline())["port"]
        eventually(lambda: Client(port).get("/health").status == 200)
        process.send_signal(signal.SIGTERM)
        assert "gRPC" not in process.stderr.read()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "Missing argument"),
        (("a", "b/a"), "two bundles are called a"),
        (("a/b=c",), "may not be empty or hold a slash"),
    ],
)
def test_misuse_is_one_line_and_status_two(
    arguments: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    assert reason in capsys.readouterr().err


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from rm_runtime.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, "serve", *arguments],
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_importing_the_runtime_does_not_import_the_server() -> None:
    heavy = {"starlette", "uvicorn", "prometheus_client", "grpc", "google.protobuf"}
    program = f"import sys, rm_runtime, rm_runtime.cli; print({heavy} & set(sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment(), check=True, capture_output=True, text=True
    )
    assert ended.stdout == "set()\n"
