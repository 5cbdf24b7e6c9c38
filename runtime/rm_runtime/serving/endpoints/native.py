"""/v1/score, /v1/rank, /v1/compare: the JSON of rm-runtime's lines (rm_runtime.json_requests), one or many of them.

{"model": ..., <a request>} is answered as a line is; {"model": ..., "requests": [...], "errors": "return"} with
{"replies": [...]}, errors in their places, or without "errors" with 422 and every row that failed. "details": true adds
what json_requests.answer_requests says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rm_runtime.errors import RequestError, RewardModelError, raise_if_asked
from rm_runtime.json_requests import Reply, RequestLine, answer_requests, parse_request
from rm_runtime.options import check_error_policy
from rm_runtime.serving.call import Call, fields_of, switch_of
from rm_runtime.serving.service import ServedModel
from rm_runtime.serving.sizes import check_rows, check_sizes


def model_list(served: Iterable[ServedModel]) -> dict[str, Any]:
    """The body of GET /v1/models. max_length: ids of a prompt at most; objectives: the names of "rewards"."""
    return {"object": "list", "data": [_described(one) for one in served]}


def _described(served: ServedModel) -> dict[str, Any]:
    manifest = served.model.bundle.manifest
    described = {
        "id": served.name,
        "object": "model",
        "family": served.model.family,
        "max_length": manifest.prompt.max_length,
    }
    objectives = manifest.parameters.get("objectives")
    return described | ({"objectives": objectives} if objectives else {})


def score(document: Any, call: Call) -> Any:
    """Scores of conversations, or ranks where there are responses."""
    return _answer(document, call, lambda request: None)


def rank(document: Any, call: Call) -> Any:
    """Ranks of responses."""
    return _answer(document, call, _needs_responses)


def compare(document: Any, call: Call) -> Any:
    """Two responses compared."""
    return _answer(document, call, _needs_two)


def replies_to(
    documents: list[Any],
    model: Any,
    call: Call,
    refusal: Callable[[RequestLine], str | None],
    details: bool = False,
) -> list[Reply]:
    """The reply to each request, or why it has none. Raises TooLargeError, and what is not one request's fault."""
    check_rows(len(documents), call.limits)
    parsed = [_parsed(document, refusal) for document in documents]
    requests = [request for request in parsed if isinstance(request, RequestLine)]
    check_sizes(model.family, requests, call.limits, details=details)
    replies = iter(answer_requests(model, requests, details=details))
    return [next(replies) if isinstance(request, RequestLine) else request for request in parsed]


def _answer(document: Any, call: Call, refusal: Callable[[RequestLine], str | None]) -> Any:
    fields = fields_of(document)
    model = call.model(fields.get("model"))
    requests, details = fields.get("requests"), switch_of(fields, "details", False)
    if requests is None:
        (reply,) = replies_to([fields], model, call, refusal, details)
        if isinstance(reply, RewardModelError):
            raise reply
        return reply
    if not isinstance(requests, list):
        raise RequestError('"requests" must be an array of requests')
    errors = "raise" if fields.get("errors") is None else fields["errors"]
    check_error_policy(errors)
    replies = raise_if_asked(replies_to(requests, model, call, refusal, details), errors)
    return {"replies": [{"error": str(reply)} if isinstance(reply, RewardModelError) else reply for reply in replies]}


def _parsed(document: Any, refusal: Callable[[RequestLine], str | None]) -> RequestLine | RequestError:
    try:
        request = parse_request(document)
    except RequestError as error:
        return error
    reason = refusal(request)
    return RequestError(reason) if reason else request


def _needs_responses(request: RequestLine) -> str | None:
    return None if request.responses else 'ranking needs "responses", the answers to rank'


def _needs_two(request: RequestLine) -> str | None:
    return None if len(request.responses or ()) == 2 else 'comparing needs "responses" with two answers'
