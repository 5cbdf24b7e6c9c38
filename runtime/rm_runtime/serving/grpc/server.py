"""The gRPC server: it lives in the event loop of the HTTP server, over the same service.

In one loop admission and drain need no locks, and a call that its client cancels is a cancelled coroutine. Models run
in the service's threads, as over HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from rm_runtime.serving.call import Call
from rm_runtime.serving.errors import (
    BadBodyError,
    ClientGoneError,
    ServingError,
    SlowBodyError,
    UnauthorizedError,
    UnknownModelError,
)
from rm_runtime.serving.grpc.codes import code_of, line_of, metadata_of
from rm_runtime.serving.grpc.messages import SERVICE, message, parsed
from rm_runtime.serving.grpc.methods import QUESTIONS, infer
from rm_runtime.serving.keys import ApiKeys
from rm_runtime.serving.logs import log_event
from rm_runtime.serving.service import Service
from rm_runtime.serving.supervisor import listening

HEALTH = "grpc.health.v1.Health"
OPEN_METHODS = (f"/{SERVICE}/ServerLive", f"/{SERVICE}/ServerReady", f"/{HEALTH}/Check")
"""As HTTP's open routes: asked by what starts and stops servers, which has no API key."""

_STOP_SECONDS = 5
"""For answers that are made to be sent."""

Answer = Callable[[Any, dict[str, Any]], Awaitable[Any]]
"""(grpc.aio.ServicerContext, where to put what the log says) -> the response. Reads the request itself."""


class GrpcServer:
    """`start` and `stop` belong to the loop that runs it. port: 0 = any that is free; after `start` the one it is."""

    def __init__(self, service: Service, keys: ApiKeys, host: str, port: int, log_prompts: bool = False) -> None:
        self.port = port
        self._service, self._keys, self._host, self._log_prompts = service, keys, host, log_prompts

    async def start(self) -> None:
        """Listen. Raises ServingError if the address cannot be had."""
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", self._service.limits.max_body_bytes),
                # not compressed: gRPC before 1.82 unpacks a message to measure it, be it a thousand times larger
                ("grpc.compression_enabled_algorithms_bitset", 1),
                ("grpc.so_reuseport", 0),  # or a second server would share this one's port, and its clients
            )
        )
        methods = {name: self._question(name) for name in QUESTIONS} | {"ModelInfer": self._infer}
        self._add(SERVICE, methods)
        self._add(HEALTH, {"Check": self._health})
        self._listen()
        await self._server.start()
        log_event("listening for gRPC", host=self._host, port=self.port)

    async def stop(self) -> None:
        """Let no more calls in, and let the answers that are made go out."""
        await self._server.stop(_STOP_SECONDS)

    def _listen(self) -> None:
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            if self.port:
                listening(self._host, self.port).close()  # gRPC does not say why it cannot
            self.port = self._server.add_insecure_port(f"{host}:{self.port}")
        except ServingError as error:
            raise ServingError(f"{error} --grpc-port, or --no-grpc") from None
        except RuntimeError:
            raise ServingError(f"gRPC cannot listen on {self._host} port {self.port}; choose another") from None

    def _add(self, service: str, methods: dict[str, Answer]) -> None:
        # One request is a stream of one on the wire: read as a stream, it can be refused before it comes, or comes late
        handlers = {
            name: grpc.stream_unary_rpc_method_handler(self._observed(f"/{service}/{name}", answer))
            for name, answer in methods.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    def _observed(self, route: str, answer: Answer) -> Callable[[Any, Any], Awaitable[bytes]]:
        """The method behind the key check; its errors become codes, and all is counted and logged under its route."""

        async def method(_: Any, context: Any) -> bytes:
            started = time.monotonic()
            error: Exception | None = None
            known: dict[str, Any] = {}
            try:
                self._check_key(route, context)
                reply: bytes = (await answer(context, known)).SerializeToString()
                return reply
            except asyncio.CancelledError:
                error = ClientGoneError("the client hung up before it was answered")
                raise
            except Exception as caught:  # not told by context.abort: a server that stops forgets what comes after it
                error = caught
                context.set_code(code_of(error))
                context.set_details(line_of(error))
                context.set_trailing_metadata(metadata_of(error))
                return b""
            finally:
                self._count(route, error, time.monotonic() - started, known)

        return method

    def _check_key(self, route: str, context: Any) -> None:
        given = dict(context.invocation_metadata() or ())
        if route not in OPEN_METHODS and not self._keys.allow(given.get("authorization")):
            raise UnauthorizedError("this server needs an API key; send it in the metadata, authorization: Bearer KEY")

    def _count(self, route: str, error: Exception | None, seconds: float, known: dict[str, Any]) -> None:
        code = code_of(error).name if error else "OK"
        kind = type(error).__name__ if error else None
        metrics = self._service.metrics
        metrics.requests.labels(route, code).inc()
        metrics.seconds.labels(route).observe(seconds)
        if kind:
            metrics.errors.labels(kind).inc()
        if known:
            log_event("request", route=route, status=code, error=kind, milliseconds=round(1000 * seconds, 1), **known)

    async def _read(self, context: Any) -> bytes:
        """The request's bytes. Raises SlowBodyError, BadBodyError."""
        seconds = self._service.limits.body_seconds
        try:
            async with asyncio.timeout(seconds):
                body = await context.read()
        except TimeoutError:
            raise SlowBodyError(f"the message did not come within {seconds:g} seconds") from None
        if not isinstance(body, bytes):
            raise BadBodyError("the call ended without a message")
        return body

    def _question(self, name: str) -> Answer:
        async def answer(context: Any, _: dict[str, Any]) -> Any:
            request = parsed(message(f"{name}Request"), await self._read(context))
            return message(f"{name}Response")(**QUESTIONS[name](request, self._service))

        return answer

    async def _health(self, context: Any, _: dict[str, Any]) -> Any:
        """grpc.health.v1, of the server or of this protocol's service, which are ready at the same time."""
        request = parsed(health_pb2.HealthCheckRequest, await self._read(context))
        if request.service not in ("", SERVICE):
            raise UnknownModelError(f"no service {request.service!r} here; there is {SERVICE}")
        ready = self._service.state == "ready"
        status = "SERVING" if ready else "NOT_SERVING"
        return health_pb2.HealthCheckResponse(status=status)

    async def _infer(self, context: Any, known: dict[str, Any]) -> Any:
        """Answers in a thread. If the client goes meanwhile, its rows leave the queue."""
        known["body_bytes"] = 0
        given = dict(context.invocation_metadata() or ())
        client = self._keys.client(given.get("authorization"), address_of(context.peer()))
        ticket = self._service.open_ticket(client, context.time_remaining())
        call = Call(self._service, ticket)

        def work(body: bytes) -> Any:
            request = parsed(message("ModelInferRequest"), body)
            if self._log_prompts:
                known["body"] = str(request)
            if request.model_name:
                call.path["model"] = request.model_name
            return infer(request, call)

        try:
            body = await self._read(context)
            known["body_bytes"] = len(body)
            self._service.hold(ticket, len(body))
            working = asyncio.ensure_future(asyncio.wrap_future(self._service.submit(lambda: work(body))))
        except BaseException:
            self._service.close_ticket(ticket)
            raise
        working.add_done_callback(lambda _: self._service.close_ticket(ticket))
        try:
            return await asyncio.shield(working)  # a cancelled call's thread still ends by itself, and only then counts
        except asyncio.CancelledError:
            ticket.end(ClientGoneError("the client hung up before it was answered"))
            raise
        finally:
            known |= {"model": call.model_name, "rows": ticket.rows}


def address_of(peer: str) -> str:
    """The address of a peer as gRPC names it, such as ipv4:127.0.0.1:50000 or ipv6:%5B::1%5D:50000."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
