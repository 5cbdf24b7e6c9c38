"""An HTTP client made for load: few microseconds of its own, so that it does not take the CPU of what it measures.

Connections to 127.0.0.1 are kept alive. A request's latency runs from when it was due (open loop) or sent (closed loop)
to the last byte of its answer.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Answered:
    """One answer. place: of the request; seconds: latency; ended: on time.monotonic's clock; status 0: none came."""

    place: int
    status: int
    seconds: float
    ended: float
    retry_after: int | None
    body: bytes


IDLE_SECONDS = 2.0
"""A connection that idled longer is not used again: the server may hang up at that moment (uvicorn after 5 s)."""


@dataclass
class Connections:
    """Connections to a port: a request takes an idle one, or opens one.

    idle: those, with the time since when. opened: how many are open, idle or not.
    """

    port: int
    opened: int = 0
    idle: deque[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=deque)

    async def ask(self, head_and_body: bytes) -> tuple[int, int | None, bytes]:
        """Send a request; its answer's status, Retry-After and body. Status 0 if the connection broke."""
        while self.idle and time.monotonic() - self.idle[0][0] > IDLE_SECONDS:
            self._close(self.idle.popleft()[2])
        if self.idle:
            _, reader, writer = self.idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.opened += 1
        try:
            writer.write(head_and_body)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await reader.readexactly(int(_field(head, b"content-length") or 0))
        except (OSError, asyncio.IncompleteReadError):
            self._close(writer)
            return 0, None, b""
        except asyncio.CancelledError:
            self._close(writer)
            raise
        if _field(head, b"connection") == b"close":
            self._close(writer)
        else:
            self.idle.append((time.monotonic(), reader, writer))
        retry_after = _field(head, b"retry-after")
        return int(head[9:12]), None if retry_after is None else int(retry_after), body

    def close(self) -> None:
        """Hang all up."""
        while self.idle:
            self._close(self.idle.pop()[2])

    def _close(self, writer: asyncio.StreamWriter) -> None:
        self.opened -= 1
        writer.close()


def post(path: str, body: bytes) -> bytes:
    """A request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def closed_loop(port: int, requests: Sequence[bytes], clients: int) -> list[Answered]:
    """Every request once; each of `clients` sends its next one as soon as it was answered."""
    connections = Connections(port)
    places = iter(range(len(requests)))

    async def client() -> list[Answered]:
        return [await _asked(connections, requests, place, time.monotonic()) for place in places]

    return _run(connections, (client() for _ in range(clients)))


def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float, seed: int) -> list[Answered]:
    """A Poisson stream of `rate` requests a second, whatever becomes of them; requests are taken round and round."""
    connections = Connections(port)
    rng = np.random.default_rng(seed)
    due = np.cumsum(rng.exponential(1 / rate, size=max(1, int(rate * seconds))))

    async def client() -> list[Answered]:
        start = time.monotonic()
        asked = []
        for number, offset in enumerate(due):
            if (wait := start + offset - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            one = _asked(connections, requests, number % len(requests), start + float(offset))
            asked.append(asyncio.ensure_future(one))
        return [await one for one in asked]

    return _run(connections, [client()])


async def _asked(connections: Connections, requests: Sequence[bytes], place: int, due: float) -> Answered:
    try:
        status, retry_after, body = await connections.ask(requests[place])
    except OSError:
        status, retry_after, body = 0, None, b""
    ended = time.monotonic()
    return Answered(place, status, ended - due, ended, retry_after, body)


def _run(connections: Connections, clients: Iterable[Awaitable[list[Answered]]]) -> list[Answered]:
    async def work() -> list[list[Answered]]:
        try:
            return await asyncio.gather(*clients)
        finally:
            connections.close()

    return [answered for of_client in asyncio.run(work()) for answered in of_client]


def _field(head: bytes, name: bytes) -> bytes | None:
    """A header's value; names are in lower case."""
    start = head.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    return head[start : head.index(b"\r\n", start)].strip()
