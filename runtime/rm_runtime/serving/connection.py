"""One client's connection: uvicorn's, with bounds on what it may hold without asking for anything.

A client has `Limits.head_seconds` from its connection, or from its last answer, until its next head is there, and as
long to read what it asked for. Bodies have bounds of their own (app.py).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rm_runtime.serving.limits import Limits

_PIECES = 4096
_PIECE_BYTES = 16
"""A body may not come in more pieces that are smaller: reading each takes as long as reading a thousand bytes."""


class TinyPiecesError(h11.RemoteProtocolError):
    """A body comes in very many very small chunks."""


class _Reader(h11.Connection):
    """h11's reader of a connection, counting the pieces that a body comes in."""

    _pieces = _bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > _PIECES and self._bytes < _PIECE_BYTES * self._pieces:
                raise TinyPiecesError(f"the body comes in chunks of less than {_PIECE_BYTES} bytes; send larger ones")
        return event


class BoundedConnection(H11Protocol):
    """refused: told the kind of error that a connection is closed for before it has a request."""

    def __init__(self, *arguments: Any, limits: Limits, refused: Callable[[str], None], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = _Reader(h11.SERVER, limits.max_head_bytes)
        self._limits = limits
        self._refused = refused
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(503, "TooManyConnections", f"{self._limits.max_connections} connections are open")
        else:
            self._watch()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls it while it handles h11's error, which knows a head that is too long from one that is none."""
        error = sys.exception()
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            self._refuse(431, "HeadTooLarge", f"the request's head has more than {self._limits.max_head_bytes} bytes")
        else:
            reason = str(error) if isinstance(error, TinyPiecesError) else "this is not an HTTP request"
            self._refuse(400, "BadRequest", reason)

    def _watch(self) -> None:
        """The clock runs while the server waits for the client: for a head, or to read."""
        in_work = self.cycle is not None and not self.cycle.response_complete
        if in_work and not self.flow.write_paused:
            self._stop_watching()
        elif self._deadline is None and self in self.connections:
            self._deadline = self.loop.call_later(self._limits.head_seconds, self._late)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        begun, _ = self.conn.trailing_data
        if self.conn.our_state is h11.IDLE and begun:
            self._refuse(408, "SlowHead", f"the head did not come within {self._limits.head_seconds:g} seconds")
        else:
            self.transport.abort()  # not closed, which would wait for a client that does not read its answer

    def _refuse(self, status: int, kind: str, reason: str) -> None:
        """Answer without a request, as far as HTTP still allows an answer, and hang up."""
        self._refused(kind)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": reason, "error_type": kind}).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            if status == 503:
                headers.append(("retry-after", "1"))
            answer = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase)
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
