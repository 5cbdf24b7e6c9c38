"""The first step of the ensemble: one conversation a chat -> the inputs of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rm_runtime.bundle import TOKENIZER_NAME, open_bundle
from rm_runtime.errors import BundleError, RequestError, RewardModelError, raise_if_asked
from rm_runtime.json_requests import RequestLine
from rm_runtime.prompt_spec import ChatPrompt
from rm_runtime.prompts import ChatPrompter, Prompt
from rm_runtime.triton.lengths import padded_to_bucket
from rm_runtime.triton.requests import chats_of, refusal, response
from rm_runtime.triton.settings import read_settings


class TokenizerModel:
    """`chats` BYTES [n, 1] -> `input_ids` and `attention_mask` INT64 [n, sequence], as long as a bucket."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read manifest and tokenizer, whose hash is checked. Raises BundleError."""
        bundle = open_bundle(read_settings(args).bundle, verify=True, only=(TOKENIZER_NAME,))
        spec = bundle.manifest.prompt
        if not isinstance(spec, ChatPrompt):
            raise BundleError(
                f"{bundle.path}: {bundle.manifest.family} compares answers, which needs more than a graph"
            )
        self._prompter = ChatPrompter(spec, bundle.tokenizer())
        self._pad = bundle.manifest.pad_token_id

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request; the chats of all are tokenised as one call. One that cannot be read fails alone."""
        chats = [[_conversation(chat) for chat in chats_of(request)] for request in requests]
        readable = [chat for of in chats for chat in of if isinstance(chat, list)]
        prompts = iter(self._prompter.encode(readable))
        rows = [[next(prompts) if isinstance(chat, list) else chat for chat in of] for of in chats]
        return [self._answered(request, of) for request, of in zip(requests, rows, strict=True)]

    def _answered(self, request: Any, prompts: Sequence[Prompt | RequestError]) -> Any:
        try:
            rows: list[Prompt] = raise_if_asked(prompts, "raise")
        except RewardModelError as error:
            return refusal(error)
        longest = self._prompter.spec.max_length
        ids, mask = padded_to_bucket([np.asarray(prompt.ids, np.int64) for prompt in rows], self._pad, longest)
        return response(request, {"input_ids": ids, "attention_mask": mask})


def _conversation(chat: RequestLine | RequestError) -> list[Any] | RequestError:
    if isinstance(chat, RequestError):
        return chat
    if chat.messages is None or chat.responses is not None:
        return RequestError(
            'the ensemble scores one conversation a chat; send "messages" alone, or ask the scoring model'
        )
    return chat.messages
