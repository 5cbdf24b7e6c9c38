"""The description of the API, as OpenAPI and as a page that needs neither scripts nor a network."""

from __future__ import annotations

import html
import json
from importlib.metadata import version
from typing import Any

from rm_runtime.serving.errors import ClientGoneError, ServingError
from rm_runtime.serving.routes import GET_ROUTES, POST_ROUTES

_PATH_MODEL = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}


def status_codes() -> dict[int, str]:
    """What each error status means: the errors' own words."""
    codes = {
        error.status: _first_line(error) for error in ServingError.__subclasses__() if error is not ClientGoneError
    }
    codes[422] = "A row cannot be tokenised or scored; the body says which, and why."
    codes[500] = "The engine failed, or the server has a defect; the log says more."
    return dict(sorted(codes.items()))


def openapi_document() -> dict[str, Any]:
    """OpenAPI 3.1: every route, with an example of each body."""
    errors = {
        str(status): {
            "description": text,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        for status, text in status_codes().items()
    }
    paths: dict[str, Any] = {}
    for path, summary in GET_ROUTES.items():
        described = {
            "summary": summary,
            "responses": {"200": {"description": "OK"}, "default": {"description": "Error"}},
        }
        paths[path] = {"get": {**described, **_parameters(path)}}
    for route in POST_ROUTES:
        body = {"schema": {"type": "object"}, "example": route.request}
        paths[route.path] = {
            "post": {
                "summary": route.summary,
                **_parameters(route.path),
                "requestBody": {"required": True, "content": {"application/json": body}},
                "responses": {
                    "200": {"description": "OK", "content": {"application/json": {"schema": {}}}},
                    **errors,
                },
            }
        }
    error_schema = {
        "type": "object",
        "required": ["error", "error_type"],
        "properties": {
            "error": {"type": "string"},
            "error_type": {"type": "string"},
            "rows": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"row": {"type": "integer"}, "error": {"type": "string"}},
                },
            },
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "rm-runtime", "version": version("rm-export")},
        "paths": paths,
        "components": {
            "schemas": {"Error": error_schema},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


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


def _parameters(path: str) -> dict[str, Any]:
    return {"parameters": [_PATH_MODEL]} if "{model}" in path else {}


def _first_line(error: type) -> str:
    return (error.__doc__ or "").splitlines()[0]
