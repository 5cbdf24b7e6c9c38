"""JSON requests and the objects that answer them: what a line of the CLI and a body of the server share.

    {"messages": [...]}                                         -> {"score": ..., ...}   pointwise families
    {"messages": [...], "responses": ["...", ...]}              -> {"ranks": [...], "scores": [...], ...}
    {"input": "...", "candidates": [...], "instruction": "..."} -> {"ranks": [...], "scores": [...]}   PairRM

Other keys are ignored, null means absent.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from rm_runtime.errors import RequestError, RewardModelError
from rm_runtime.results import Comparison, Ranking
from rm_runtime.templates import validate_conversation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rm_runtime.families.pair_pm import PairPM
    from rm_runtime.families.pairrm import PairRM
    from rm_runtime.families.pointwise import PointwiseModel
    from rm_runtime.preferences import Preferences
    from rm_runtime.results import Score

Reply = dict[str, Any] | RewardModelError
"""The JSON object that answers a request, or why there is none."""


@dataclass(frozen=True)
class RequestLine:
    """One request, its fields checked for their types; messages are checked when they are rendered.

    messages: the conversation to score or, with responses, the prompt they answer; None for PairRM's own
    form, which has a source (its "input") and perhaps an instruction. responses: the answers to rank, never
    empty.
    """

    messages: list[Any] | None = None
    responses: list[str] | None = None
    source: str | None = None
    instruction: str | None = None


def parse_json(text: bytes) -> Any:
    """The value of strict JSON in UTF-8. Raises RequestError: not JSON, NaN, beyond float64, too deep."""
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite_float)
    except UnicodeDecodeError as error:
        raise RequestError(f"not UTF-8: byte 0x{text[error.start]:02x} at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except ValueError:  # of int(), which refuses to read thousands of digits
        raise RequestError("a number has too many digits") from None
    except RecursionError:
        raise RequestError("it is nested too deeply") from None


def parse_request(document: object) -> RequestLine:
    """A request from a parsed JSON value. Raises RequestError that names the key and what is wrong with
    it."""
    if not isinstance(document, dict):
        raise RequestError(f"a request is a JSON object, not {_json_type(document)}")
    messages = document.get("messages")
    if messages is not None:
        if not isinstance(messages, list):
            raise RequestError(f'"messages" must be an array of messages, not {_json_type(messages)}')
        return RequestLine(messages, _texts(document, "responses"))
    source, candidates = _text(document, "input"), _texts(document, "candidates")
    if source is None:
        raise RequestError('a request needs "messages", or for PairRM "input" and "candidates"')
    if candidates is None:
        raise RequestError('a request with "input" needs "candidates", the answers to rank')
    return RequestLine(None, candidates, source, _text(document, "instruction"))


def answer_requests(model: Any, requests: Sequence[RequestLine], *, details: bool = False) -> list[Reply]:
    """The reply to each request, in their order; the model runs them all as one batched request.

    details: add what a reader of one ranking asks next: of each answer its tokens, what was cut, and a pointwise
    family's whole score; of a pairwise family's every pair the probability, which takes n(n - 1) prompts.
    Raises what is not one request's fault, e.g. EngineError.
    """
    from rm_runtime.families.pair_pm import PairPM
    from rm_runtime.families.pointwise import PointwiseModel

    if isinstance(model, PointwiseModel):
        return _pointwise_replies(model, requests, details)
    if isinstance(model, PairPM):
        return _pair_pm_replies(model, requests, details)
    return [_pair_ranker_reply(model, request, details) for request in requests]


def to_json(document: Mapping[str, Any] | Sequence[Any]) -> str:
    """Strict JSON in one line: text as it is, escaped where a lone surrogate makes UTF-8 impossible.

    Raises ValueError for a number that is not finite.
    """
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(document, allow_nan=False)
    return text


def _pointwise_replies(model: PointwiseModel, requests: Sequence[RequestLine], details: bool) -> list[Reply]:
    from rm_runtime.families.pointwise import conversations_with

    conversations: list[Any] = []
    rows: list[slice] = []
    for request in requests:
        first = len(conversations)
        if request.messages is not None:
            one, many = request.messages, request.responses
            conversations += [one] if many is None else conversations_with(one, many)
        rows.append(slice(first, len(conversations)))
    scores = model.score(conversations, errors="return")
    return [_pointwise_reply(request, scores[of], details) for request, of in zip(requests, rows, strict=True)]


def _pointwise_reply(request: RequestLine, scores: list[Any], details: bool) -> Reply:
    if request.messages is None:
        return RequestError('only PairRM takes "input" and "candidates"; send "messages" and "responses"')
    if request.responses is None:
        return _detailed(scores[0]) if details else _reply(scores[0])
    errors = {place: score for place, score in enumerate(scores) if isinstance(score, RewardModelError)}
    if errors:
        return RequestError("; ".join(f"response {place}: {error}" for place, error in errors.items()))
    ranking = Ranking.from_scores([score.score for score in scores], [score.truncation for score in scores])
    answers = {"answers": [_detailed(score) for score in scores]} if details else {}
    return {**ranking.as_json(), **answers}


def _detailed(score: Score | RewardModelError) -> Reply:
    return score if isinstance(score, RewardModelError) else {**score.as_json(), "tokens": score.tokens}


def _pair_pm_replies(model: PairPM, requests: Sequence[RequestLine], details: bool) -> list[Reply]:
    refused = [_refused_by_pair_pm(request) for request in requests]
    groups: list[Any] = [
        (request.messages, request.responses) for request, error in zip(requests, refused, strict=True) if error is None
    ]
    if details:
        preferences = iter(model.preferences_many(groups, errors="return"))
        return [error or _reply(next(preferences)) for error in refused]
    pairs = [(messages, *responses) for messages, responses in groups if len(responses) == 2]
    comparisons = iter(model.compare_many(pairs, errors="return"))
    rankings = iter(model.rank_many([group for group in groups if len(group[1]) != 2], errors="return"))
    return [
        error or _reply(next(comparisons if len(request.responses or ()) == 2 else rankings))
        for request, error in zip(requests, refused, strict=True)
    ]


def _refused_by_pair_pm(request: RequestLine) -> RequestError | None:
    if request.messages is None:
        return RequestError('only PairRM takes "input" and "candidates"; send "messages" and "responses"')
    if request.responses is None:
        return RequestError('this model compares answers and cannot score one alone; send "responses"')
    return None


def _pair_ranker_reply(model: PairRM, request: RequestLine, details: bool) -> Reply:
    """Asked alone, as the sources in a batch decide how much of each candidate is read (semantics.md 5.2)."""
    if request.responses is None:
        return RequestError('this model compares answers and cannot score one alone; send "responses"')
    try:
        if details:
            asked = (request.source or "") if request.messages is None else validate_conversation(request.messages)
            return _reply(model.preferences(asked, request.responses, request.instruction))
        if request.messages is not None:
            return _reply(model.rank(validate_conversation(request.messages), request.responses))
        sources = [request.source or ""]
        instructions = None if request.instruction is None else [request.instruction]
        (scores,) = model.rank(sources, [request.responses], instructions, return_scores=True)
    except RequestError as error:
        return error
    return _reply(Ranking.from_scores(scores.tolist()))


def _reply(result: Score | Ranking | Comparison | Preferences | RewardModelError) -> Reply:
    if isinstance(result, RewardModelError):
        return result
    if isinstance(result, Comparison):
        ranking = Ranking.from_scores((result.probability, 1 - result.probability))
        return {**ranking.as_json(), **result.as_json()}
    return result.as_json()


def _texts(document: Mapping[str, Any], key: str) -> list[str] | None:
    texts = document.get(key)
    if texts is None:
        return None
    if not isinstance(texts, list) or not texts:
        raise RequestError(f'"{key}" must be an array of at least one text, not {_json_type(texts)}')
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise RequestError(f'"{key}" holds {_json_type(text)} at place {place}, not a text')
    return texts


def _text(document: Mapping[str, Any], key: str) -> str | None:
    text = document.get(key)
    if text is None or isinstance(text, str):
        return text
    raise RequestError(f'"{key}" must be a text, not {_json_type(text)}')


def _json_type(value: object) -> str:
    """A JSON value's type as its sender calls it."""
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, list):
        return "an array" if value else "an empty array"
    names = {str: "a string", dict: "an object", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _refuse_constant(name: str) -> NoReturn:
    raise RequestError(f"not JSON: {name}")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise RequestError(f"the number {text[:20]} is out of range")
    return value
