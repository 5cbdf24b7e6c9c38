"""Families that score one conversation at a time: ArmoRM, GRM, scalar, DPA."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_runtime.batching import run_rows
from rm_runtime.bundle import Bundle
from rm_runtime.engines.protocol import Arrays, Engine
from rm_runtime.errors import (
    BundleError,
    PromptError,
    RequestError,
    RewardModelError,
    UnscorableError,
    raise_if_asked,
)
from rm_runtime.options import RequestOptions, check_error_policy
from rm_runtime.prompt_spec import ChatPrompt
from rm_runtime.prompts import ChatPrompter, Prompt
from rm_runtime.results import ArmoScore, DPAScore, LogitsScore, Ranking, Score

Conversation = Sequence[Mapping[str, Any]]

PROBE: Conversation = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"})
"""What every loaded bundle must be able to score."""


class PointwiseModel:
    """A loaded bundle that scores conversations; subclasses name what their outputs mean."""

    def __init__(self, bundle: Bundle, engine: Engine, options: RequestOptions) -> None:
        if not isinstance(bundle.manifest.prompt, ChatPrompt):
            raise BundleError(f"{bundle.path}: family {bundle.manifest.family} needs a chat prompt")
        self.bundle = bundle
        self.engine = engine
        self.options = options
        self._prompter = ChatPrompter(bundle.manifest.prompt, bundle.tokenizer())

    @property
    def family(self) -> str:
        """The bundle's family name."""
        return self.bundle.manifest.family

    def score(self, conversations: Sequence[Conversation], errors: str = "raise", **options: Any) -> list[Any]:
        """Score conversations: lists of {"role", "content"} that end in the answer.

        errors: "raise" raises one ScoringError that names every row that cannot be scored, after the others were
        computed, and carries them; "return" puts the error in that row's place. options: RequestOptions fields that
        overrule the loaded ones for this call. Returns one Score a conversation, in their order.
        """
        check_error_policy(errors)
        chosen = dataclasses.replace(self.options, **options) if options else self.options
        prompts = self._prompter.encode(conversations, truncation=chosen.truncation, special_text=chosen.special_text)
        return raise_if_asked(self._results(prompts, chosen.batch_tokens), errors)

    def score_rendered(self, texts: Sequence[str], errors: str = "raise", **options: Any) -> list[Any]:
        """Score conversations that were rendered elsewhere, by an RLHF trainer: what the chat template gives.

        Special-token text in them is special tokens. Otherwise as `score`.
        """
        check_error_policy(errors)
        chosen = dataclasses.replace(self.options, **options)
        prompts = self._prompter.encode_rendered(texts, chosen.truncation)
        return raise_if_asked(self._results(prompts, chosen.batch_tokens), errors)

    def rank(self, messages: Conversation, responses: Sequence[str], **options: Any) -> Ranking:
        """Rank several answers to one prompt by their scores. messages: the conversation up to the answer."""
        scores = self.score(conversations_with(messages, responses), **options)
        return Ranking.from_scores([score.score for score in scores], [score.truncation for score in scores])

    def probe(self) -> None:
        """Score one short chat. Raises BundleError if the bundle gives no number for it: its weights are damaged."""
        (result,) = self.score([PROBE], errors="return")
        if isinstance(result, RewardModelError):
            raise BundleError(f"{self.bundle.path} cannot score even a plain chat: {result}; export the bundle again")

    def _results(self, prompts: Sequence[Prompt | PromptError], batch_tokens: int) -> list[Any]:
        """One Score or error a prompt; the prompts run as one request."""
        results: list[Any] = list(prompts)
        rows = [row for row, prompt in enumerate(prompts) if isinstance(prompt, Prompt)]
        encoded = [prompt for prompt in prompts if isinstance(prompt, Prompt)]
        ids = [np.asarray(prompt.ids, np.int64) for prompt in encoded]
        outputs = run_rows(self.engine, ids, self.bundle.manifest.pad_token_id, batch_tokens) if rows else {}
        for place, row in enumerate(rows):
            if math.isnan(outputs["score"][place]):
                results[row] = self._unscorable(encoded[place], ids[place])
            else:
                results[row] = self._result(encoded[place], outputs, place)
        return results

    def _result(self, prompt: Prompt, outputs: Arrays, row: int) -> Score:
        """The result of one row; `outputs` as in the graph contract."""
        score, tokens = float(outputs["score"][row]), len(prompt.ids)
        if "logits" in outputs:
            logits = tuple(float(value) for value in outputs["logits"][row])
            return LogitsScore(score, tokens, prompt.truncation, logits)
        return Score(score, tokens, prompt.truncation)

    def _unscorable(self, prompt: Prompt, ids: NDArray[np.int64]) -> UnscorableError:
        if not len(ids):
            return UnscorableError("the conversation renders to no token at all")
        return UnscorableError("the model gave no number for it: its weights or activations are not finite")

    def _objectives(self) -> list[str]:
        names = self.bundle.manifest.parameters.get("objectives")
        if not isinstance(names, list):
            raise BundleError(f"{self.bundle.path}: its manifest names no objectives; export the bundle again")
        return [str(name) for name in names]


class ArmoRM(PointwiseModel):
    """Scores come as ArmoScore: 19 rewards, gating weights and coefficients by objective."""

    def _result(self, prompt: Prompt, outputs: Arrays, row: int) -> Score:
        names = self._objectives()
        return ArmoScore(
            float(outputs["score"][row]),
            len(prompt.ids),
            prompt.truncation,
            rewards=by_name(names, outputs["rewards"][row]),
            gating=by_name(names, outputs["gating"][row]),
            coefficients=by_name(names, outputs["coefficients"][row]),
        )

    def _unscorable(self, prompt: Prompt, ids: NDArray[np.int64]) -> UnscorableError:
        pattern = np.asarray(self.bundle.manifest.parameters["gate_pattern"], np.int64)
        starts = range(len(ids) - len(pattern) + 1)
        if any(np.array_equal(ids[start : start + len(pattern)], pattern) for start in starts):
            return super()._unscorable(prompt, ids)
        cut = f" ({'; '.join(map(str, prompt.truncation))})" if prompt.truncation else ""
        return UnscorableError(
            f"its ids hold no start of an assistant turn after another turn, where ArmoRM's gate reads{cut}; the "
            "conversation needs a user turn before the answer"
        )


class DPARewardModel(PointwiseModel):
    """Scores come as DPAScore: ten objectives on a 0-100 scale."""

    def _result(self, prompt: Prompt, outputs: Arrays, row: int) -> Score:
        rewards = by_name(self._objectives(), outputs["rewards"][row])
        return DPAScore(float(outputs["score"][row]), len(prompt.ids), prompt.truncation, rewards)


def conversations_with(messages: Conversation, responses: Sequence[str]) -> list[list[Mapping[str, Any]]]:
    """One conversation a response: `messages` followed by it. Raises RequestError for an empty list or a non-text."""
    if isinstance(responses, str) or not responses:
        raise RequestError("responses must be a list of at least one text")
    for place, response in enumerate(responses):
        if not isinstance(response, str):
            raise RequestError(f"response {place} is a {type(response).__name__}, not a text")
    return [[*messages, {"role": "assistant", "content": response}] for response in responses]


def by_name(names: Sequence[str], values: NDArray[Any]) -> dict[str, float]:
    """values [len(names)] as a dict."""
    return {name: float(value) for name, value in zip(names, values, strict=True)}
