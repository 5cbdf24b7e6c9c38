"""What one request, and all that wait, may take."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; beyond each is one HTTP status.

    max_body_bytes: of one request (413). max_rows: prompts of one request (413). max_requests: being answered at once,
    a thread each (429). max_queue_rows, max_queue_tokens: waiting for one bundle's engine (429); a request that is
    larger than the empty queue is 413. max_wait_seconds: that the engine needs, as it is expected, for what waits
    before a request (429). max_connections: open at once (503), fewer than the 1,024 descriptors that a process
    commonly has. max_head_bytes: of a request line and its headers (431). head_seconds: from a connection, or its last
    answer, until a head has come (408); body_seconds: until its body has, too (408). timeout_seconds: from a request's
    head to its answer (504). drain_seconds: for requests in work once the server is told to stop (503).
    """

    max_body_bytes: int = 4 * 2**20
    max_rows: int = 1024
    max_requests: int = 256
    max_queue_rows: int = 8192
    max_queue_tokens: int = 2**20
    max_wait_seconds: float = 30.0
    max_connections: int = 768
    max_head_bytes: int = 16 * 2**10
    head_seconds: float = 20.0
    body_seconds: float = 30.0
    timeout_seconds: float = 60.0
    drain_seconds: float = 30.0

    def of_newcomers(self) -> Limits:
        """For a client that has nothing in work: places that no other client can take, however much it asks."""
        counts = {name: getattr(self, name) * 5 // 4 for name in ("max_requests", "max_queue_rows", "max_queue_tokens")}
        return replace(self, **counts, max_wait_seconds=self.max_wait_seconds * 5 / 4)

    @property
    def max_bodies_bytes(self) -> int:
        """Of all bodies in work together (429): parsed JSON is many times as large."""
        return 16 * self.max_body_bytes

    @property
    def max_characters(self) -> int:
        """Of one request's prompts once rendered: every answer has its question before it, which the body has once."""
        return 4 * self.max_body_bytes
