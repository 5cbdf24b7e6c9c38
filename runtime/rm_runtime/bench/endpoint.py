"""A model behind the Open Inference Protocol v2 over HTTP: `rm-runtime serve`, Triton, or another that takes our chats.

Source: kserve/open-inference-protocol, inference_rest.md; Triton's protocol/extension_model_repository.md.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from rm_runtime.errors import EngineError, RequestError

TIMEOUT_SECONDS = 120.0
"""For one answer: a server that needs longer is not measured."""

KEYS = "RM_RUNTIME_API_KEYS"
"""Of the environment; the first of its keys is sent, as the server reads the same variable."""

_WENT_AWAY = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)
_SHOWN = 300


@dataclass(frozen=True)
class Endpoint:
    """A model to ask. columns: its chats have the shape [n, 1], as in Triton, not [n]. server: name and version."""

    url: str
    model: str
    columns: bool
    server: tuple[str, str]

    def body(self, requests: Sequence[str]) -> bytes:
        """What asks for replies to these chats, each the JSON of a request."""
        shape = [len(requests), 1] if self.columns else [len(requests)]
        chats = {"name": "chats", "datatype": "BYTES", "shape": shape, "data": list(requests)}
        return json.dumps({"inputs": [chats], "outputs": [{"name": "replies"}]}).encode()

    @property
    def path(self) -> str:
        return f"/v2/models/{quote(self.model, safe='')}/infer"


@dataclass
class Connection:
    """One kept alive; opened anew if the server has closed it while nothing was asked."""

    url: str
    _http: http.client.HTTPConnection = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raises RequestError for what is no address."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise RequestError(f"{self.url}: write an address as in http://127.0.0.1:8000, --model names the model")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        try:
            self._http = kind(parts.hostname, parts.port, timeout=TIMEOUT_SECONDS)
        except ValueError as error:
            raise RequestError(f"{self.url}: {error}") from None

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of the answer. Raises EngineError if there is none."""
        fresh = self._http.sock is None
        try:
            return self._asked(method, path, body)
        except _WENT_AWAY as error:
            self.close()
            if fresh:
                raise self._unanswered(error) from None
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unanswered(error) from None
        return self.ask(method, path, body)

    def close(self) -> None:
        self._http.close()

    def _asked(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        keys = os.environ.get(KEYS, "").split()
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {keys[0]}"} if keys else {})
        self._http.request(method, path, body, headers)
        response = self._http.getresponse()
        return response.status, response.read()

    def _unanswered(self, error: Exception) -> EngineError:
        if isinstance(error, TimeoutError):
            return EngineError(f"{self.url} did not answer within {TIMEOUT_SECONDS:g} s")
        if isinstance(error, ConnectionRefusedError):
            return EngineError(f"nothing listens at {self.url}; start the server, or pass the port it has for HTTP")
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return EngineError(f"{self.url} cannot be asked ({reason}); pass the address of a server that speaks HTTP")


def find_endpoint(connection: Connection, model: str | None) -> Endpoint:
    """The model of that name, or the only one that answers chats.

    Raises EngineError that says what the server is not, or which models it has.
    """
    about = _document(connection, "/v2")
    if about is None or not isinstance(about.get("name"), str):
        raise EngineError(f"{connection.url} is no server of the KServe protocol v2: GET /v2 does not tell its name")
    names = _models(connection)
    found = {name: described for name in ([model] if model else names) if (described := _chats(connection, name))}
    if not found and model:
        known = f"; it has {', '.join(names)}" if names else ""
        raise EngineError(f"{connection.url} has no model {model!r} that takes chats and gives replies{known}")
    if not found:
        raise EngineError(f"{connection.url} names no model that takes chats and gives replies; name one with --model")
    if len(found) > 1:
        raise EngineError(f"{connection.url} has several models that answer chats: --model {' | '.join(found)}")
    ((name, shape),) = found.items()
    return Endpoint(connection.url, name, len(shape) == 2, (about["name"], str(about.get("version", ""))))


def replies_of(connection: Connection, endpoint: Endpoint, body: bytes) -> list[str]:
    """What the model answers to a body. Raises EngineError with the server's own reason if it does not."""
    status, answer = connection.ask("POST", endpoint.path, body)
    document = _parsed(answer)
    if status != 200 or not isinstance(document, dict):
        raise EngineError(f"{endpoint.url} answered {status}: {_reason(answer)}")
    (replies,) = [output["data"] for output in document["outputs"] if output["name"] == "replies"]
    return [str(reply) for reply in replies]


def _models(connection: Connection) -> list[str]:
    """By Triton's index, or by ours; a server may have neither."""
    status, answer = connection.ask("POST", "/v2/repository/index", b"{}")
    index = _parsed(answer)
    if status == 200 and isinstance(index, list):
        return [str(row["name"]) for row in index if isinstance(row, dict) and row.get("state", "READY") == "READY"]
    listed = _document(connection, "/v1/models")
    rows = listed.get("data") if listed else None
    return [str(row.get("id")) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _chats(connection: Connection, model: str) -> list[Any] | None:
    """The shape of the model's chats, None if it takes none or is not there."""
    about = _document(connection, f"/v2/models/{quote(model, safe='')}")
    if about is None or "replies" not in [output.get("name") for output in about.get("outputs", ())]:
        return None
    shapes = [tensor["shape"] for tensor in about.get("inputs", ()) if tensor.get("name") == "chats"]
    return list(shapes[0]) if shapes else None


def _document(connection: Connection, path: str) -> Mapping[str, Any] | None:
    """The object at that path, None if there is none. Raises EngineError if it takes an API key."""
    status, answer = connection.ask("GET", path)
    if status in (401, 403):
        raise EngineError(f"{connection.url} wants an API key; put it into the environment, {KEYS}")
    document = _parsed(answer)
    return document if status == 200 and isinstance(document, dict) else None


def _parsed(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        return None


def _reason(answer: bytes) -> str:
    document = _parsed(answer)
    reason = document.get("error") if isinstance(document, dict) else None
    return " ".join(str(reason or answer.decode("utf-8", "replace")).split())[:_SHOWN]
