"""What an endpoint is given: a JSON document, and the models by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rm_runtime.errors import RequestError
from rm_runtime.serving.limits import Limits
from rm_runtime.serving.service import Service
from rm_runtime.serving.ticket import Ticket


@dataclass
class Call:
    """One request. path: parameters of its route; model_name: which model it asked, once it did."""

    service: Service
    ticket: Ticket
    path: dict[str, str] = field(default_factory=dict)
    model_name: str | None = None

    @property
    def limits(self) -> Limits:
        """Of the server."""
        return self.service.limits

    def model(self, name: object = None, **options: Any) -> Any:
        """The model of that name, or of the route, or the default; its rows wait their turn under the call's ticket."""
        served = self.service.model(self.path.get("model") if name is None else name)
        self.model_name = served.name
        return served.for_request(self.ticket, **options)


Answer = Callable[[Any, Call], Any]
"""(JSON document, call) -> JSON document. Raises RewardModelError for what it cannot answer."""


def fields_of(document: object) -> dict[str, Any]:
    """The document as an object. Raises RequestError if it is none."""
    if not isinstance(document, dict):
        raise RequestError("a request is a JSON object")
    return document


def texts_of(document: dict[str, Any], key: str) -> list[str]:
    """A list of texts, at least one. Raises RequestError that names the key."""
    texts = document.get(key)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RequestError(f'"{key}" must be an array of at least one text')
    return texts


def switch_of(document: dict[str, Any], key: str, default: bool) -> bool:
    """A boolean. Raises RequestError that names the key."""
    value = document.get(key)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f'"{key}" must be true or false')
    return default if value is None else value


def pointwise(model: Any) -> Any:
    """The model, if it scores one answer alone. Raises RequestError if it compares answers."""
    from rm_runtime.families.pointwise import PointwiseModel

    if not isinstance(model, PointwiseModel):
        raise RequestError("this model compares answers and cannot score one alone; use /v1/rank")
    return model
