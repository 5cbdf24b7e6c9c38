"""The page to try a model on: plain HTML, CSS and JavaScript, sent as one document that loads nothing else."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

_STYLE, _SCRIPT = "<!-- style -->", "<!-- script -->"


def answer(request: Request) -> Response:
    """The page, or 304 if the browser has it."""
    page, headers = _page_and_headers()
    if headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(page, headers=headers, media_type="text/html")


@cache
def _page_and_headers() -> tuple[bytes, dict[str, str]]:
    """Nothing runs but the script of this package, by its hash; nothing is asked but this server; no text of an answer
    can become markup (Trusted Types)."""
    style, script = _text("playground.css"), _text("results.js") + _text("playground.js")
    page = _text("index.html").replace(_STYLE, f"<style>{style}</style>").replace(_SCRIPT, f"<script>{script}</script>")
    policy = {
        "default-src": "'none'",
        "script-src": _source(script),
        "style-src": _source(style),
        "connect-src": "'self'",
        "img-src": "data:",  # the icon
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    body = page.encode()
    headers = {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
        "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
    }
    return body, headers


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _source(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
