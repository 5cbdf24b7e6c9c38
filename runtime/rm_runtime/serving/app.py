"""The ASGI application: bodies read within their bounds, answered in threads, every error a line of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from rm_runtime.errors import RequestError, ScoringError, UnscorableError
from rm_runtime.json_requests import parse_json, to_json
from rm_runtime.serving import playground
from rm_runtime.serving.call import Answer, Call
from rm_runtime.serving.endpoints import kserve, native
from rm_runtime.serving.endpoints.binary_tensors import HEADER, BinaryReply, read_tensors
from rm_runtime.serving.endpoints.inference import model_metadata
from rm_runtime.serving.errors import (
    BadBodyError,
    ClientGoneError,
    NotReadyError,
    ServingError,
    SlowBodyError,
    TooLargeError,
    UnauthorizedError,
    status_of,
    told,
)
from rm_runtime.serving.keys import ApiKeys
from rm_runtime.serving.logs import log_event
from rm_runtime.serving.openapi import openapi_document, page
from rm_runtime.serving.routes import OPEN_ROUTES, POST_ROUTES
from rm_runtime.serving.service import Service
from rm_runtime.serving.ticket import Ticket

Handler = Callable[[Request], Awaitable[Response]]


def application(service: Service, keys: ApiKeys, failed: Callable[[], None], log_prompts: bool) -> Starlette:
    """The application over a service, which it starts and closes. failed: as in Service.start."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.start(failed)
        yield
        await asyncio.to_thread(service.close)

    def route(path: str, method: str, handler: Handler) -> Route:
        return Route(path, _observed(path, handler, service, keys), methods=[method])

    routes = [route(path, "GET", handler) for path, handler in _get_handlers(service).items()]
    routes += [route(post.path, "POST", _post_handler(post.answer, service, keys, log_prompts)) for post in POST_ROUTES]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _unrouted})


def _get_handlers(service: Service) -> dict[str, Handler]:
    """By path, as routes.GET_ROUTES describes them."""

    async def ready(_: Request) -> Response:
        if service.state != "ready":
            raise NotReadyError(f"the server is {service.state}")
        return JSONResponse({"ready": True})

    async def live(_: Request) -> Response:
        return JSONResponse({"live": True})

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(_: Request) -> Response:
        return JSONResponse(native.model_list(service.model(name) for name in service.names))

    async def server(_: Request) -> Response:
        return JSONResponse(kserve.server_metadata())

    async def model(request: Request) -> Response:
        return JSONResponse(model_metadata(service.model(request.path_params["model"])))

    async def model_ready(request: Request) -> Response:
        service.model(request.path_params["model"])
        return await ready(request)

    async def openapi(_: Request) -> Response:
        return JSONResponse(openapi_document(service.names))

    async def try_out(request: Request) -> Response:
        return playground.answer(request)

    async def docs(_: Request) -> Response:
        return HTMLResponse(page())

    return {
        "/": try_out,
        "/health": ready,
        "/metrics": metrics,
        "/v1/models": models,
        "/v2": server,
        "/v2/health/live": live,
        "/v2/health/ready": ready,
        "/v2/models/{model}": model,
        "/v2/models/{model}/ready": model_ready,
        "/openapi.json": openapi,
        "/docs": docs,
    }


def _observed(path: str, handler: Handler, service: Service, keys: ApiKeys) -> Handler:
    """The handler behind the key check; its errors become answers, and all is counted and logged under its route."""

    async def endpoint(request: Request) -> Response:
        started = time.monotonic()
        error_type = None
        try:
            if path not in OPEN_ROUTES and not keys.allow(request.headers.get("authorization")):
                raise UnauthorizedError("this server needs an API key; send it as Authorization: Bearer KEY")
            response = await handler(request)
        except Exception as error:
            error_type = type(error).__name__
            response = _error_response(error)
            service.metrics.errors.labels(error_type).inc()
        if service.state == "draining":
            response.headers["connection"] = "close"  # no client may think that it can come back here
        seconds = time.monotonic() - started
        response.headers["server-timing"] = f"total;dur={1000 * seconds:.1f}"  # W3C Server Timing, milliseconds
        service.metrics.requests.labels(path, response.status_code).inc()
        service.metrics.seconds.labels(path).observe(seconds)
        if request.method == "POST":
            known = getattr(request.state, "log", {})
            took = round(1000 * seconds, 1)
            log_event("request", route=path, status=response.status_code, error=error_type, milliseconds=took, **known)
        return response

    return endpoint


def _post_handler(answer: Answer, service: Service, keys: ApiKeys, log_prompts: bool) -> Handler:
    """Reads a body and answers it in a thread. request.state.log: what the log says of it."""

    async def handler(request: Request) -> Response:
        peer = request.client.host if request.client else ""
        ticket = service.open_ticket(keys.client(request.headers.get("authorization"), peer))
        call = Call(service, ticket, dict(request.path_params))
        text = b""
        try:
            text = await _body(request, service, ticket)
            return await _answered(request, call, text, answer)
        except asyncio.CancelledError:  # by a server that stops, and has waited for long enough
            raise NotReadyError("the server stopped before this request was answered") from None
        finally:
            service.close_ticket(ticket)
            request.state.log = {"model": call.model_name, "rows": ticket.rows, "body_bytes": len(text)}
            if log_prompts:
                request.state.log["body"] = text.decode("utf-8", "replace")

    return handler


async def _body(request: Request, service: Service, ticket: Ticket) -> bytes:
    """The whole body. Raises TooLargeError, QueueFullError, SlowBodyError, ClientGoneError."""
    limit, seconds = service.limits.max_body_bytes, service.limits.body_seconds
    pieces: list[bytes] = []
    size = int(request.headers.get("content-length", 0))
    try:
        async with asyncio.timeout(seconds):
            if size <= limit:
                size = 0
                async for piece in request.stream():
                    size += len(piece)
                    if size > limit:
                        break
                    service.hold(ticket, len(piece))
                    pieces.append(piece)
    except TimeoutError:
        raise SlowBodyError(f"the body did not come within {seconds:g} seconds") from None
    except ClientDisconnect:
        raise ClientGoneError("the client hung up before its body was read") from None
    if size > limit:
        raise TooLargeError(f"the body has {size} bytes or more, {limit} is the limit; send fewer rows at once")
    return b"".join(pieces)


async def _answered(request: Request, call: Call, text: bytes, answer: Answer) -> Response:
    """The answer; if the client hangs up meanwhile, its rows leave the queue."""

    def work() -> Response:
        header_length = request.headers.get(HEADER)
        try:
            document = parse_json(text) if header_length is None else read_tensors(text, header_length)
        except RequestError as error:
            raise BadBodyError(f"the body is {error}" if str(error).startswith("not ") else str(error)) from None
        reply = answer(document, call)
        try:
            if isinstance(reply, BinaryReply):
                body, headers = reply.encoded()
                return Response(body, headers=headers)
            return Response(to_json(reply).encode("utf-8"), media_type="application/json")
        except ValueError:
            raise UnscorableError("the model gave a number that is not finite") from None

    future = asyncio.wrap_future(call.service.submit(work))
    hung_up = asyncio.ensure_future(_hung_up(request))
    either: set[asyncio.Future[Any]] = {future, hung_up}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            call.ticket.end(ClientGoneError("the client hung up before it was answered"))
        return await future
    finally:
        hung_up.cancel()


async def _hung_up(request: Request) -> None:
    """Returns once the client is gone; after a body, nothing else comes from it."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error_response(error: Exception) -> Response:
    document: dict[str, Any] = {"error": told(error), "error_type": type(error).__name__}
    headers: dict[str, str] = {}
    if isinstance(error, ScoringError):
        document["rows"] = [{"row": row, "error": str(reason)} for row, reason in sorted(error.errors.items())]
    if isinstance(error, ServingError) and error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, UnauthorizedError):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, SlowBodyError):
        headers["connection"] = "close"
    return Response(to_json(document), status_of(error), headers, "application/json")


async def _unrouted(_: Request, error: Exception) -> Response:
    """404 and 405 in the form of all errors."""
    assert isinstance(error, HTTPException)
    document = {"error": f"{error.detail}; see /docs", "error_type": "NotFound"}
    return JSONResponse(document, error.status_code, error.headers)
