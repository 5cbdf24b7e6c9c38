"""Requests of a load test: chats of realistic length (rm_runtime.bench.chats), singles and best-of-n mixed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rm_runtime.bench.chats import WORDS, draw_chats
from rm_runtime.bundle import Bundle

BEST_OF = (1, 1, 1, 1, 1, 1, 2, 4, 4, 8)
"""Answers of a request, each as likely as it is often here: six in ten score one chat, the others rank."""

LONGEST = 1984
"""Ids of a request's messages and answers."""


@dataclass(frozen=True)
class LoadRequest:
    """A body of /v1/score: one chat, or a prompt with its answers."""

    document: dict[str, Any]

    @property
    def body(self) -> bytes:
        """Its JSON."""
        return json.dumps(self.document, ensure_ascii=False).encode()

    @property
    def rows(self) -> int:
        """Prompts the model reads."""
        return len(self.document.get("responses", [None]))


def load_requests(bundle: Bundle, count: int, seed: int, best_of: Sequence[int] = BEST_OF) -> list[LoadRequest]:
    """`count` requests in an order of their own, the same for a seed; no two are equal."""
    rng = np.random.default_rng(seed)
    tokenizer = bundle.tokenizer()
    ids_per_word = len(tokenizer.encode(" ".join(WORDS), add_special_tokens=False).ids) / len(WORDS)
    numbers = [best_of[place] for place in rng.integers(0, len(best_of), count)]
    chats = {
        answers: iter(draw_chats(numbers.count(answers), answers, ids_per_word, LONGEST, 100 * seed + answers))
        for answers in set(numbers)
    }
    requests = []
    for answers in numbers:
        chat = next(chats[answers])
        messages = list(chat.messages)
        if answers == 1:
            whole = [*messages, {"role": "assistant", "content": chat.responses[0]}]
            requests.append(LoadRequest({"messages": whole}))
        else:
            requests.append(LoadRequest({"messages": messages, "responses": list(chat.responses)}))
    return requests
