"""Sockets in bad faith: each gets an answer or is hung up on, and the next client is served as ever."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fake_models import pointwise
from served import PATIENCE, Client, eventually, serving

BODY = json.dumps({"messages": [{"role": "user", "content": "Hello."}]}).encode()
ANSWER = {"score": 6.0}
HEAD = b"POST /v1/score HTTP/1.1\r\nhost: here\r\n"
MAX_BODY_BYTES = 10_000
CONNECTIONS = 40


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    model = pointwise(lambda rendered: {"score": float(rendered.count("Hello.") * 6)})
    with serving(
        {"rm": model},
        max_body_bytes=MAX_BODY_BYTES,
        head_seconds=0.5,
        body_seconds=0.5,
        max_connections=CONNECTIONS,
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_logged_as_a_defect_and_the_next_request_is_fine(
    client: Client, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    yield
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    reply = client.ask("POST", "/v1/score", BODY)
    assert (reply.status, reply.json) == (200, ANSWER)


def connected(client: Client) -> socket.socket:
    return socket.create_connection(("127.0.0.1", client.port), PATIENCE)


def all_that_comes(connection: socket.socket) -> bytes:
    """Until the server hangs up."""
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            answer += piece
    return answer


def dripped(connection: socket.socket, piece: bytes) -> bytes:
    """What comes back for a piece that is sent again and again, a little at a time, until the server has enough."""
    answer = b""
    connection.settimeout(0.02)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while True:
            connection.sendall(piece)
            with contextlib.suppress(TimeoutError):
                if not (received := connection.recv(65536)):
                    break
                answer += received
    return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_a_head_that_drips_is_408(client: Client) -> None:
    with connected(client) as slow:
        slow.sendall(HEAD)
        answer = dripped(slow, b"x-more: 1\r\n")
    assert status_of(answer) == 408
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error_type"] == "SlowHead"


def test_a_second_head_that_drips_is_408(client: Client) -> None:
    with connected(client) as slow:
        slow.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: here\r\n\r\n")
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")
        slow.sendall(HEAD)
        answer = dripped(slow, b"x-more: 1\r\n")
    assert status_of(answer[answer.rindex(b"HTTP/1.1") :]) == 408


def test_a_body_that_drips_is_408(client: Client) -> None:
    with connected(client) as slow:
        slow.sendall(HEAD + b"content-length: 9000\r\n\r\n")
        assert status_of(dripped(slow, b" ")) == 408
    with connected(client) as slow:
        slow.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        assert status_of(dripped(slow, b"1\r\n \r\n")) == 408


def test_the_rest_of_a_refused_body_may_not_drip_either(client: Client) -> None:
    with connected(client) as slow:
        slow.sendall(HEAD + b"content-length: 50000000\r\n\r\n")
        assert status_of(dripped(slow, b" ")) == 413


def test_a_body_in_very_many_very_small_chunks_is_400(client: Client) -> None:
    with connected(client) as tiny:
        with contextlib.suppress(ConnectionError):
            tiny.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 9000)
        answer = all_that_comes(tiny)
    assert (status_of(answer), b"send larger ones" in answer) == (400, True)


def test_a_silent_connection_is_hung_up_on(client: Client) -> None:
    with connected(client) as silent:
        assert all_that_comes(silent) == b""


def test_a_client_that_does_not_read_its_answer_is_hung_up_on(client: Client) -> None:
    with connected(client) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        deaf.settimeout(0.02)
        with contextlib.suppress(TimeoutError, OSError):
            while True:
                deaf.sendall(b"GET /docs HTTP/1.1\r\nhost: here\r\n\r\n" * 100)
        eventually(lambda: connections_of_server(client) == 0)


def connections_of_server(client: Client) -> int:
    """How many sockets of this process are a server's end of a connection to that port."""
    listener = f":{client.port:04X} "
    own = {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(listener.strip()) and row[3] == "01" and f"socket:[{row[9]}]" in own for row in rows)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (HEAD + b"x-long: " + b"x" * 1_000_000 + b"\r\n\r\n", 431),
        (b"POST /" + b"x" * 1_000_000, 431),
        (HEAD + b"content-length: -1\r\n\r\n", 400),
        (HEAD + b"content-length: 1e3\r\n\r\n", 400),
        (HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\n", 400),
        (HEAD + b"content-length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (HEAD + b"transfer-encoding: gzip\r\n\r\n", 400),
        (HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n-1\r\n", 400),
        (HEAD + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffffff\r\n", 408),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n {}\r\n", 400),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1;" + b"x" * 100_000, 431),
        (HEAD + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n{}", 100),
        (HEAD + b"inference-header-content-length: \xb2\r\ncontent-length: 2\r\n\r\n{}", 400),
        (b"POST /v1/score HTTP/1.1\r\n\r\n", 400),
        (b"POST /v1/score HTTP/9.9\r\nhost: here\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404),
        (b"\r\n\r\n\0\0\0\0\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nhost: here\r\n\r\n", 400),
        (b"GET /%ff%00 HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n", 404),
        (b"GET /../../etc/passwd HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n", 404),
        (b"GET /docs HTTP/1.1\r\nhost: here\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 200),
    ],
    ids=lambda value: repr(value[-40:]) if isinstance(value, bytes) else None,
)
def test_what_is_no_request_is_refused(client: Client, request_bytes: bytes, status: int) -> None:
    with connected(client) as bad:
        with contextlib.suppress(ConnectionError):
            bad.sendall(request_bytes)
        answer = all_that_comes(bad)
    assert status_of(answer) == status
    if status >= 400:
        assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]


@pytest.mark.parametrize("sent", [0, 1, len(HEAD) // 2, len(HEAD), len(HEAD) + 20, len(HEAD) + 40])
@pytest.mark.parametrize("half", [True, False], ids=["half-closed", "closed"])
def test_a_client_that_stops_in_the_middle_is_let_go(client: Client, sent: int, half: bool) -> None:
    whole = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    with connected(client) as broken:
        broken.sendall(whole[:sent])
        if half:
            broken.shutdown(socket.SHUT_WR)
            assert all_that_comes(broken) == b""
    eventually(lambda: connections_of_server(client) == 0 and client.metric("rm_requests_in_flight") == 0)


def test_garbage_behind_a_request_does_not_spoil_its_answer(client: Client) -> None:
    request = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    with connected(client) as pipelining:
        pipelining.sendall(request + request + b"\0garbage\r\n\r\n")
        first, second, third = all_that_comes(pipelining).split(b"HTTP/1.1 ")[1:]
    for answer in (first, second):
        assert answer.startswith(b"200")
        assert json.loads(answer.rpartition(b"\r\n\r\n")[2]) == ANSWER
    assert third.startswith(b"400")


def test_bytes_beyond_the_content_length_are_another_request(client: Client) -> None:
    with connected(client) as short:
        short.sendall(HEAD + b"content-length: 2\r\n\r\n{}" + b" " * 100 + b"\r\n\r\n")
        first, second = all_that_comes(short).split(b"HTTP/1.1 ")[1:]
    assert (first[:3], second[:3]) == (b"422", b"400")


def test_more_connections_than_may_be_open_are_told_503(client: Client) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(connected(client)) for _ in range(CONNECTIONS)]
        eventually(lambda: connections_of_server(client) == CONNECTIONS)
        answer = all_that_comes(stack.enter_context(connected(client)))
        assert status_of(answer) == 503
        assert b"retry-after: 1" in answer
        assert held[0].fileno() > 0
    eventually(lambda: connections_of_server(client) == 0)


def test_fifty_megabytes_in_chunks_are_413_and_not_kept(client: Client) -> None:
    before = resident_bytes()
    with connected(client) as large:
        large.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(50):
                large.sendall(b"f4240\r\n" + b" " * 1_000_000 + b"\r\n")
            large.sendall(b"0\r\n\r\n")
            large.shutdown(socket.SHUT_WR)
        assert status_of(all_that_comes(large)) == 413
    assert resident_bytes() - before < 25_000_000, "half of it"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("seed", range(20))
def test_a_request_with_any_bytes_changed_is_answered_or_hung_up_on(client: Client, seed: int) -> None:
    random_source = random.Random(seed)
    request = bytearray(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
    for _ in range(random_source.randint(1, 6)):
        place = random_source.randrange(len(request))
        request[place : place + random_source.randint(0, 3)] = random_source.randbytes(random_source.randint(0, 3))
    with connected(client) as odd:
        odd.sendall(request)
        answer = all_that_comes(odd)
    assert not answer or status_of(answer) in (200, 400, 404, 405, 408, 413, 422, 431)
