"""A worker that dies, however it does: why is said, it is started again or the command ends, and answers stay right."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fake_models import write_scalar_bundle
from rm_runtime.serving.supervisor import cause_of_death, out_of_memory_kills
from served import PATIENCE, Client, eventually, served_process

QUESTION = [{"role": "user", "content": "How do tides come about?"}]
DOCUMENT = {"messages": QUESTION, "responses": [f"{word} " * 100 for word in "abcd"]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scalar_bundle(tmp_path_factory.mktemp("bundles") / "mean")


def events(lines: list[str], name: str) -> list[dict[str, Any]]:
    documents = [json.loads(line) for line in list(lines) if line.startswith("{")]
    return [document for document in documents if document["event"] == name]


def kill_worker(lines: list[str], number: int) -> None:
    """As soon as it was started."""
    eventually(lambda: len(events(lines, "worker started")) > len(events(lines, "worker died")))
    os.kill(events(lines, "worker started")[-1]["pid"], number)


def ended_with(process: subprocess.Popen[str], lines: list[str]) -> tuple[int, str]:
    """The exit status and the last line."""
    status = process.wait(PATIENCE)
    eventually(lambda: lines and lines[-1].startswith("rm-runtime: error: "))
    return status, lines[-1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
def test_a_worker_that_is_killed_under_load_is_started_again_and_answers_stay_right(bundle: Path, number: int) -> None:
    with served_process(str(bundle)) as (process, client, lines):
        expected = client.post("/v1/rank", DOCUMENT).json
        answered: list[int] = []
        lost: list[Exception] = []
        enough = threading.Event()

        def ask() -> None:
            while not enough.is_set():
                try:
                    reply = client.post("/v1/rank", DOCUMENT)
                except Exception as error:  # the connection went with the worker
                    lost.append(error)
                    continue
                assert reply.status == 503 or reply.json == expected
                answered.append(reply.status)

        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(ask) for _ in range(4)]
            eventually(lambda: len(answered) > 20)
            kill_worker(lines, number)
            eventually(lambda: len(events(lines, "ready")) == 2)
            after = answered.count(200)
            eventually(lambda: answered.count(200) > after + 20)
            enough.set()
            for one in clients:
                one.result(PATIENCE)
        assert len(lost) <= 4, "each client can lose the request that was in work"
        (died,) = events(lines, "worker died")
        assert signal.Signals(number).name in died["reason"]
        assert died["restarted"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_a_request_that_comes_while_there_is_no_worker_is_answered_by_the_next(bundle: Path) -> None:
    with served_process(str(bundle)) as (_, client, lines):
        kill_worker(lines, signal.SIGSTOP)
        with socket.create_connection(("127.0.0.1", client.port), PATIENCE) as waiting:
            waiting.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: here\r\n\r\n")
            kill_worker(lines, signal.SIGKILL)
            assert waiting.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert len(events(lines, "worker started")) == 2


def test_a_worker_that_dies_again_and_again_ends_the_command_with_one_line(bundle: Path) -> None:
    with served_process(str(bundle), "--restarts", "2") as (process, _, lines):
        for deaths in (1, 2, 3):
            kill_worker(lines, signal.SIGABRT)
            eventually(lambda deaths=deaths: len(events(lines, "worker died")) == deaths)
        assert ended_with(process, lines) == (
            1,
            "rm-runtime: error: the worker died 3 times, at last of SIGABRT (Aborted)\n",
        )
        assert [died["restarted"] for died in events(lines, "worker died")] == [True, True, False]


def test_without_restarts_the_first_death_ends_the_command(bundle: Path) -> None:
    with served_process(str(bundle), "--restarts", "0") as (process, _, lines):
        kill_worker(lines, signal.SIGKILL)
        status, line = ended_with(process, lines)
    assert (status, "SIGKILL" in line) == (1, True)
    assert len(events(lines, "worker started")) == 1


def half_asked(client: Client) -> tuple[socket.socket, bytes]:
    """A request that is in work until it gets the rest of its body."""
    body = json.dumps({"messages": QUESTION}).encode()
    slow = socket.create_connection(("127.0.0.1", client.port), PATIENCE)
    slow.sendall(f"POST /v1/score HTTP/1.1\r\nhost: here\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body[:-1])
    eventually(lambda: client.metric("rm_requests_in_flight") == 1)
    return slow, body[-1:]


def test_a_worker_whose_supervisor_is_killed_answers_what_is_in_work_and_ends(bundle: Path) -> None:
    with served_process(str(bundle)) as (process, client, lines):
        slow, rest = half_asked(client)
        with slow:
            process.kill()
            eventually(lambda: events(lines, "draining"))
            slow.sendall(rest)
            assert slow.recv(65536).startswith(b"HTTP/1.1 200 ")
        eventually(lambda: events(lines, "stopped"))
        (started,) = events(lines, "worker started")
        eventually(lambda: not Path(f"/proc/{started['pid']}").exists())


def test_a_second_signal_ends_a_server_that_drains_and_tells_who_still_waits(bundle: Path) -> None:
    with served_process(str(bundle), "--drain", "3600") as (process, client, lines):
        slow, _ = half_asked(client)
        with slow:
            process.send_signal(signal.SIGINT)
            eventually(lambda: events(lines, "draining"))
            process.send_signal(signal.SIGTERM)
            answer = slow.recv(65536)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in answer
            assert process.wait(PATIENCE) == 0
        assert "Traceback" not in "".join(lines)


def test_a_worker_that_dies_while_it_drains_is_not_started_again(bundle: Path) -> None:
    with served_process(str(bundle)) as (process, client, lines):
        slow, _ = half_asked(client)
        with slow:
            process.send_signal(signal.SIGTERM)
            eventually(lambda: events(lines, "draining"))
            kill_worker(lines, signal.SIGKILL)
            assert ended_with(process, lines)[0] == 1
    assert len(events(lines, "worker started")) == 1


@pytest.mark.parametrize(
    ("status", "kills", "cause"),
    [
        (-signal.SIGSEGV, 0, "SIGSEGV (Segmentation fault)"),
        (-signal.SIGKILL, 1, "SIGKILL: out of memory, says its control group"),
        (-signal.SIGKILL, 0, "SIGKILL: by hand, or out of memory; the kernel's log knows"),
        (134, 0, "exit status 134"),
    ],
)
def test_the_cause_of_a_death_is_told(status: int, kills: int, cause: str) -> None:
    assert cause_of_death(status, kills) == cause


@pytest.mark.parametrize(
    ("group", "file", "counts"),
    [
        ("0::/pod/server", "sys/fs/cgroup/pod/server/memory.events", "low 0\nhigh 3\nmax 9\noom 2\noom_kill 2\n"),
        ("0::/hidden", "sys/fs/cgroup/memory.events", "oom 2\noom_kill 2\n"),
        ("4:memory:/server", "sys/fs/cgroup/memory/server/memory.oom_control", "under_oom 0\noom_kill 2\n"),
    ],
)
def test_what_the_kernel_killed_for_memory_is_counted_by_the_control_group(
    tmp_path: Path, group: str, file: str, counts: str
) -> None:
    for path, text in (("proc/self/cgroup", f"{group}\n"), (file, counts)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert out_of_memory_kills(tmp_path) == 2
    assert out_of_memory_kills(tmp_path / "no such machine") == 0
