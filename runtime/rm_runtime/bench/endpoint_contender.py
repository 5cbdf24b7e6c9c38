"""A served model among a benchmark's contenders: what its clients wait for, tokenisation and network included."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rm_runtime.bench.endpoint import Connection, Endpoint, find_endpoint, replies_of
from rm_runtime.errors import EngineError

_PLAIN = '{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}'
_PAIR = '{"messages": [{"role": "user", "content": "Hello"}], "responses": ["Hi", "What?"]}'


@dataclass(frozen=True)
class EndpointSpec:
    """A server to be measured. name: its address; model: None = its only one; connections: requests at once."""

    name: str
    model: str | None
    connections: int
    is_reference: bool = False


class EndpointContender:
    """A server from the first request to `close`. `opened` is what is known of it.

    requests: the JSON of each row's request. Rows go one a request, so that the server joins them as it does for
    clients who do not know of each other; `connections` of them at once.
    """

    def __init__(self, spec: EndpointSpec, requests: Sequence[str]) -> None:
        """Finds the model and asks the first row. Raises EngineError, RequestError."""
        self.spec = spec
        self._connections = [Connection(spec.name) for _ in range(spec.connections)]
        self._clients = ThreadPoolExecutor(spec.connections, "client")
        try:
            self.endpoint: Endpoint = find_endpoint(self._connections[0], spec.model)
            self._bodies = [self.endpoint.body([request]) for request in requests]
            first = self.run([0])
        except BaseException:
            self.stop()
            raise
        name, version = self.endpoint.server
        self.opened: dict[str, Any] = {
            "engine": name,
            "versions": {name: version},
            "load_seconds": None,
            "first_row_seconds": first,
            "loaded_bytes": None,
        }

    def run(self, rows: Sequence[int]) -> float:
        """Seconds until all these rows are answered, all asked at once."""
        return max(self.answered_at(rows, [0.0] * len(rows)))

    def answered_at(self, rows: Sequence[int], arriving: Sequence[float]) -> list[float]:
        """Seconds from now until each row is answered, if row rows[i] is asked arriving[i] seconds from now.

        A row waits where all connections are in use, as its client would in front of a full server. Raises EngineError.
        """
        places = iter(range(len(rows)))  # shared: every client takes the next row
        answered = [0.0] * len(rows)
        began = time.perf_counter()

        def client(connection: Connection) -> None:
            for place in places:
                time.sleep(max(0.0, began + arriving[place] - time.perf_counter()))
                replies_of(connection, self.endpoint, self._bodies[rows[place]])
                answered[place] = time.perf_counter() - began

        clients = [self._clients.submit(client, connection) for connection in self._connections[: len(rows)]]
        failed = [error for client in clients if (error := client.exception())]
        if failed:
            raise failed[0] if isinstance(failed[0], EngineError) else EngineError(str(failed[0]))
        return answered

    def close(self) -> int | None:
        """Hang up. A server does not tell its memory: None."""
        self.stop()
        return None

    def stop(self) -> None:
        self._clients.shutdown()
        for connection in self._connections:
            connection.close()


def answers_to_ask(url: str, model: str | None) -> int:
    """1 if the model there scores a conversation, 2 if it compares answers. Raises EngineError if it does neither."""
    connection = Connection(url)
    try:
        endpoint = find_endpoint(connection, model)
        try:
            replies_of(connection, endpoint, endpoint.body([_PLAIN]))
        except EngineError as error:
            try:
                replies_of(connection, endpoint, endpoint.body([_PAIR]))
            except EngineError:
                raise error from None
            return 2
        return 1
    finally:
        connection.close()
