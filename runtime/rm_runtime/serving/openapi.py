"""The description of the API, as OpenAPI and as a page that needs neither scripts nor a network."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from rm_runtime.serving.errors import BusyError, ClientGoneError, ServingError
from rm_runtime.serving.routes import GET_ROUTES, OPEN_ROUTES, POST_ROUTES
from rm_runtime.serving.schemas import COMPONENTS, REPLIES, body_of

TEXTS = {"/": "text/html", "/metrics": "text/plain", "/docs": "text/html"}
"""Media types of what is answered other than in JSON."""


def status_codes() -> dict[int, str]:
    """What each error status means: the errors' own words."""
    refusals = [*ServingError.__subclasses__(), *BusyError.__subclasses__()]
    codes = {error.status: _first_line(error) for error in refusals if error not in (BusyError, ClientGoneError)}
    codes[422] = "A row cannot be tokenised or scored; the body says which, and why."
    codes[500] = "The engine failed, or the server has a defect; the log says more."
    return dict(sorted(codes.items()))


def openapi_document(models: Sequence[str]) -> dict[str, Any]:
    """OpenAPI 3.1: every route, with an example of each body. models: the names that are served."""
    model = {"name": "model", "in": "path", "required": True, "schema": {"enum": list(models)}}
    paths: dict[str, Any] = {}
    for path, summary in GET_ROUTES.items():
        paths[path] = {"get": _operation(path, summary, (500, 503) if path in OPEN_ROUTES else (401, 404, 500, 503))}
    for route in POST_ROUTES:
        body = {"schema": body_of(route.path, models), "example": route.request}
        paths[route.path] = {
            "post": {
                **_operation(route.path, route.summary, tuple(status_codes())),
                "requestBody": {"required": True, "content": {"application/json": body}},
            }
        }
    for path, operations in paths.items():
        if "{model}" in path:
            operations["parameters"] = [model]
    return {
        "openapi": "3.1.0",
        "info": {"title": "rm-runtime", "version": version("rm-export")},
        "paths": paths,
        "components": {
            "schemas": COMPONENTS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(path: str, summary: str, statuses: Sequence[int]) -> dict[str, Any]:
    replied = {"application/json": {"schema": REPLIES[path]}} if path in REPLIES else {TEXTS[path]: {}}
    responses: dict[str, Any] = {"200": {"description": "OK", "content": replied}}
    for status in statuses:
        error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        responses[str(status)] = {"description": status_codes()[status], "content": error}
        if status in {error.status for error in BusyError.__subclasses__()}:
            responses[str(status)]["headers"] = {
                "Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}
            }
    return {"summary": summary, "responses": responses, **({"security": []} if path in OPEN_ROUTES else {})}


def page() -> str:
    """The same as HTML."""
    posts = "".join(
        f"<h3><code>POST {html.escape(route.path)}</code></h3><p>{html.escape(route.summary)}</p>"
        f"<pre>{html.escape(json.dumps(route.request, indent=2))}</pre>"
        for route in POST_ROUTES
    )
    gets = _table((f"GET {path}", text) for path, text in GET_ROUTES.items())
    codes = _table((str(status), text) for status, text in status_codes().items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>rm-runtime</title>'
        '<meta name="viewport" content="width=device-width"><style>:root{color-scheme:light dark}'
        "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
        "pre{overflow:auto;border:1px solid;padding:.5rem}td{padding-right:1rem;vertical-align:top}</style>"
        f'<h1>rm-runtime</h1><p>For machines: <a href="openapi.json">openapi.json</a></p>{posts}{gets}'
        f"<h2>Errors</h2><p>Every error is an object with <code>error</code>, one line for a reader.</p>{codes}</html>"
    )


def _table(rows: Any) -> str:
    cells = (f"<tr><td><code>{html.escape(left)}</code><td>{html.escape(right)}" for left, right in rows)
    return f"<table>{''.join(cells)}</table>"


def _first_line(error: type) -> str:
    return (error.__doc__ or "").splitlines()[0]
