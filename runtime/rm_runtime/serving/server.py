"""The worker around the application: its connections, its signals, its end."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from rm_runtime.serving.app import application
from rm_runtime.serving.connection import BoundedConnection
from rm_runtime.serving.keys import ApiKeys
from rm_runtime.serving.logs import log_event
from rm_runtime.serving.service import Service

if TYPE_CHECKING:
    from rm_runtime.serving.grpc.server import GrpcServer

_STOP_SECONDS = 5
"""After the drain, for bodies that still have not come."""


def serve(
    service: Service,
    listener: socket.socket,
    keys: ApiKeys,
    log_prompts: bool,
    on_ready: Callable[[], None],
    grpc: GrpcServer | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then answer what is in work. on_ready: called when all bundles are loaded.
    grpc: runs as long as the HTTP server.

    Raises what loading a bundle raised.
    """
    server = DrainingServer(service, keys, log_prompts, grpc, on_ready)
    server.run(sockets=[listener])
    if service.failure:
        raise service.failure
    log_event("stopped")


class DrainingServer(uvicorn.Server):
    """Stays reachable while it drains, so that clients are told 503 and not refused. A second signal ends that."""

    def __init__(
        self,
        service: Service,
        keys: ApiKeys,
        log_prompts: bool,
        grpc: GrpcServer | None = None,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        app = application(service, keys, self._stop, log_prompts)
        connection = partial(
            BoundedConnection, limits=service.limits, refused=lambda kind: service.metrics.errors.labels(kind).inc()
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=connection,  # type: ignore[arg-type]  # uvicorn only calls it
                ws="none",
                proxy_headers=False,  # anyone can write them; a peer is who the socket says
                log_config=None,
                access_log=False,
                lifespan="on",
                server_header=False,
                timeout_graceful_shutdown=_STOP_SECONDS,
            )
        )
        self._service = service
        self._grpc = grpc
        self._on_ready = on_ready
        self._draining: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._grpc:
            await self._grpc.start()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self._grpc:
            await self._grpc.stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining is not None:
            super().handle_exit(sig, frame)
            return
        self._draining = time.monotonic()  # and nothing more: a signal may come in the middle of anything

    async def on_tick(self, counter: int) -> bool:
        """uvicorn asks ten times a second whether to stop."""
        if self._on_ready and self._service.state == "ready":
            self._on_ready()
            self._on_ready = None
        if self._draining is not None:
            self._service.drain()
            late = time.monotonic() - self._draining > self._service.limits.drain_seconds
            if late:
                self._service.abandon()
            self.should_exit |= late or not self._service.in_flight
        return await super().on_tick(counter)

    def _stop(self) -> None:
        self.should_exit = True
