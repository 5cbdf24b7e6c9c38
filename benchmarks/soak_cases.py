"""Requests of every route that scores, each with the scores that the model itself gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from direct_process import DirectProcess
from http_load import post
from load_requests import LoadRequest
from rm_runtime.bundle import Bundle
from rm_runtime.prompts import ChatPrompter

Chat = list[dict[str, str]]
ScoresOf = Callable[[Any], list[float]]


@dataclass(frozen=True)
class Case:
    """request: as it goes over the wire. scores_of: an answer -> scores in the order of `expected`."""

    route: str
    request: bytes
    expected: tuple[float, ...]
    scores_of: ScoresOf


def cases_of(requests: Sequence[LoadRequest], bundle: Bundle, direct: DirectProcess) -> list[Case]:
    """A case a request, routes by turns."""
    prompter = ChatPrompter(bundle.manifest.prompt, bundle.tokenizer())
    drawn = []
    for place, request in enumerate(requests):
        route, make = _ROUTES[place % len(_ROUTES)]
        messages, answers = _prompt_and_answers(request)
        if route in ("/rerank", "/predict"):  # which take a question without what was said before
            messages = messages[-1:]
        if route == "/classify":  # one chat
            answers = answers[:1]
        chats = [[*messages, {"role": "assistant", "content": answer}] for answer in answers]
        if route == "/get_reward":
            document, scores_of = make([prompt.text for prompt in prompter.encode(chats)], answers)
        else:
            document, scores_of = make(messages, answers)
        drawn.append((route, document, scores_of, chats))
    every = [{"messages": chat} for _, _, _, chats in drawn for chat in chats]
    scores = iter(reply["score"] for reply in direct.replies(every))
    return [
        Case(route, post(route, json.dumps(document).encode()), tuple(next(scores) for _ in chats), scores_of)
        for route, document, scores_of, chats in drawn
    ]


def _prompt_and_answers(request: LoadRequest) -> tuple[Chat, list[str]]:
    document = request.document
    if "responses" in document:
        return document["messages"], document["responses"]
    *messages, answer = document["messages"]
    return messages, [answer["content"]]


def _score(messages: Chat, answers: list[str]) -> tuple[Any, ScoresOf]:
    whole = [{"messages": [*messages, {"role": "assistant", "content": answer}]} for answer in answers]
    return {"requests": whole}, lambda reply: [one["score"] for one in reply["replies"]]


def _rank(messages: Chat, answers: list[str]) -> tuple[Any, ScoresOf]:
    return {"messages": messages, "responses": answers}, lambda reply: list(reply["scores"])


def _rerank(messages: Chat, answers: list[str]) -> tuple[Any, ScoresOf]:
    document = {"query": messages[-1]["content"], "texts": answers, "raw_scores": True}
    return document, lambda reply: [one["score"] for one in sorted(reply, key=lambda one: int(one["index"]))]


def _predict(messages: Chat, answers: list[str]) -> tuple[Any, ScoresOf]:
    pairs = [[messages[-1]["content"], answer] for answer in answers]
    return {"inputs": pairs, "raw_scores": True}, lambda reply: [one[0]["score"] for one in reply]


def _classify(messages: Chat, answers: list[str]) -> tuple[Any, ScoresOf]:
    whole = [*messages, {"role": "assistant", "content": answers[0]}]
    return {"messages": whole, "use_activation": False}, lambda reply: [one["probs"][0] for one in reply["data"]]


def _get_reward(texts: list[str], answers: list[str]) -> tuple[Any, ScoresOf]:
    return {"query": texts, "prompts": answers}, lambda reply: list(reply["rewards"])


def _infer(messages: Chat, answers: list[str]) -> tuple[Any, ScoresOf]:
    chats = [json.dumps({"messages": [*messages, {"role": "assistant", "content": answer}]}) for answer in answers]
    tensor = {"name": "chats", "datatype": "BYTES", "shape": [len(chats)], "data": chats}

    def scores_of(reply: Any) -> list[float]:
        (output,) = [output for output in reply["outputs"] if output["name"] == "score"]
        return list(output["data"])

    return {"inputs": [tensor]}, scores_of


_ROUTES: tuple[tuple[str, Callable[[Any, list[str]], tuple[Any, ScoresOf]]], ...] = (
    ("/v1/score", _score),
    ("/v1/rank", _rank),
    ("/rerank", _rerank),
    ("/predict", _predict),
    ("/classify", _classify),
    ("/get_reward", _get_reward),
    ("/v2/models/rm/infer", _infer),
)
