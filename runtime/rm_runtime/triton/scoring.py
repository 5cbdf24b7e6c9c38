"""The Triton model that answers chats: everything that `rm-runtime serve` answers to `chats`, in the same words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_runtime.bundle import TOKENIZER_NAME, open_bundle
from rm_runtime.engines.shared_prefix import warm_up
from rm_runtime.errors import EngineError, RequestError, RewardModelError, raise_if_asked
from rm_runtime.families import model_class
from rm_runtime.json_requests import Reply, RequestLine, answer_requests, to_json
from rm_runtime.loading import load
from rm_runtime.options import RequestOptions
from rm_runtime.serving.limits import Limits
from rm_runtime.serving.sizes import check_rows, check_sizes
from rm_runtime.token_budget import default_batch_tokens
from rm_runtime.triton.graph_rows import GraphRows
from rm_runtime.triton.requests import chats_of, refusal, response, texts
from rm_runtime.triton.settings import Settings, read_settings

Chats = list[RequestLine | RequestError]


class ScoringModel:
    """`chats` BYTES [n, 1] -> `replies` BYTES [n, 1], and `score` FP32 [n, 1] where every reply has one."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle. Its hashes are checked, and one chat is scored unless the graph is a model of its own."""
        self._model = open_model(read_settings(args))
        warm_up(self._model.engine, self._model.bundle.manifest.pad_token_id)
        self._limits = Limits()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request; the chats of all are scored as one call. A request that has no answer fails alone."""
        asked = [self._checked(request) for request in requests]
        chats = [of if isinstance(of, list) else [] for of in asked]
        try:
            replies = self._replies(chats)
        except EngineError as error:
            replies = [self._alone(of) for of in chats] if len(chats) > 1 else [error]
        return [
            refusal(of) if isinstance(of, RewardModelError) else _answered(request, reply)
            for request, of, reply in zip(requests, asked, replies, strict=True)
        ]

    def _checked(self, request: Any) -> Chats | RewardModelError:
        chats = chats_of(request)
        try:
            check_rows(len(chats), self._limits)
            check_sizes(self._model.family, [chat for chat in chats if isinstance(chat, RequestLine)], self._limits)
        except RewardModelError as error:
            return RequestError(str(error))
        return chats

    def _replies(self, chats: Sequence[Chats]) -> list[list[Reply] | RewardModelError]:
        """Replies to the chats of each request. Raises EngineError."""
        readable = [chat for of in chats for chat in of if isinstance(chat, RequestLine)]
        answers = iter(answer_requests(self._model, readable) if readable else [])
        return [[next(answers) if isinstance(chat, RequestLine) else chat for chat in of] for of in chats]

    def _alone(self, chats: Chats) -> list[Reply] | RewardModelError:
        """The engine failed on several requests together: which of them is at fault is found out by each alone."""
        try:
            return self._replies([chats])[0]
        except EngineError as error:
            return error


def open_model(settings: Settings) -> Any:
    """The bundle's model, over an engine of its own or over the graph as a Triton model.

    Raises BundleError, EngineError.
    """
    if settings.graph is None:
        where = (settings.engine, settings.threads, settings.device)
        return load(settings.bundle, *where, verify=True, batch_tokens=settings.batch_tokens)
    bundle = open_bundle(settings.bundle, verify=True, only=(TOKENIZER_NAME,))
    manifest = bundle.manifest
    tokens = settings.batch_tokens or default_batch_tokens(bundle, settings.device)
    outputs = tuple(tensor.name for tensor in manifest.outputs)
    longest = manifest.prompt.max_length
    rows = GraphRows(settings.graph, outputs, manifest.pad_token_id, longest, tokens, settings.graph_batch)
    return model_class(manifest.family)(bundle, rows, RequestOptions(batch_tokens=tokens))


def _answered(request: Any, replies: list[Reply] | RewardModelError) -> Any:
    """The response to a request, or its refusal, which names every chat that has no reply."""
    if isinstance(replies, RewardModelError):
        return refusal(replies)
    try:
        answered: list[dict[str, Any]] = raise_if_asked(replies, "raise")
    except RewardModelError as error:
        return refusal(error)
    outputs: dict[str, NDArray[Any]] = {"replies": texts([to_json(reply) for reply in answered])}
    if all("score" in reply for reply in answered):
        outputs["score"] = np.array([reply["score"] for reply in answered], np.float32)
    return response(request, outputs)
