"""A server on loopback: in a thread over models of a test's own, or the command in a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
PATIENCE = 30.0
"""Seconds until a test gives up on something that has to happen."""
RM_RUNTIME = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from rm_runtime.cli import main; sys.exit(main())"
)
"""The command, that hears SIGINT even where a shell has put the tests, and all that they start, into the background."""


@dataclass(frozen=True)
class Reply:
    """status, headers (names in lower case) and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    """Asks the server on that port, a connection a request. grpc_port: 0 where it has none."""

    port: int
    key: str | None = None
    grpc_port: int = 0

    def ask(self, method: str, path: str, body: bytes | None = None, **more_headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        headers |= {name.replace("_", "-"): value for name, value in more_headers.items()}
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        return self.ask("GET", path)

    def post(self, path: str, document: Any) -> Reply:
        return self.ask("POST", path, json.dumps(document).encode())

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def eventually(condition: Callable[[], Any]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@contextlib.contextmanager
def serving(
    models: Mapping[str, Any], keys: tuple[str, ...] = (), grpc: bool = False, **limits: Any
) -> Iterator[Client]:
    """Serve loaded models, by name, in this process. A model that is a function is called when it is to be loaded."""
    from rm_runtime.serving.grpc.server import GrpcServer
    from rm_runtime.serving.keys import ApiKeys
    from rm_runtime.serving.limits import Limits
    from rm_runtime.serving.server import DrainingServer
    from rm_runtime.serving.service import Service
    from rm_runtime.serving.supervisor import listening

    def open_model(path: Path) -> Any:
        model = models[path.name]
        return model() if callable(model) else model

    service = Service({name: Path(name) for name in models}, open_model, Limits(**limits))
    over_grpc = GrpcServer(service, ApiKeys(keys), "127.0.0.1", 0) if grpc else None
    with listening("127.0.0.1", 0) as listener:
        server = DrainingServer(service, ApiKeys(keys), log_prompts=False, grpc=over_grpc)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            eventually(lambda: server.started)
            if not any(callable(model) for model in models.values()):
                eventually(lambda: service.state == "ready")
            key = keys[0] if keys else None
            yield Client(listener.getsockname()[1], key, over_grpc.port if over_grpc else 0)
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
    assert not thread.is_alive()


def environment() -> dict[str, str]:
    """Of a process that imports these packages."""
    packages = (str(TESTS.parent / name) for name in ("export", "calibration", "runtime"))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*packages, str(TESTS)])}


@contextlib.contextmanager
def served_process(*arguments: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], Client, list[str]]]:
    """`rm-runtime serve` with these arguments: the process, a client once it is ready, its log so far."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            RM_RUNTIME,
            "serve",
            "--port",
            "0",
            *(() if "--grpc-port" in arguments else ("--no-grpc",)),
            "--threads",
            "1",
            *arguments,
        ],
        env={**environment(), **variables},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines: list[str] = []
    reading = threading.Thread(target=lines.extend, args=[process.stderr], daemon=True)
    reading.start()
    try:
        eventually(lambda: lines)
        client = Client(json.loads(lines[0])["port"], variables.get("RM_RUNTIME_API_KEYS"))
        eventually(lambda: client.get("/health").status == 200)
        over_grpc = [json.loads(line)["port"] for line in lines if '"listening for gRPC"' in line]
        yield process, replace(client, grpc_port=over_grpc[0] if over_grpc else 0), lines
    finally:
        process.kill()
        process.wait()
        reading.join()
        process.stderr.close()
