"""What can be posted where: one record a route, which the server runs and its OpenAPI document describes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rm_runtime.serving.call import Answer
from rm_runtime.serving.endpoints import kserve, native, openrlhf, tei, vllm

_MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}]
_CHAT = [*_MESSAGES, {"role": "assistant", "content": "4"}]
_ANSWERS = ["4", "I do not know."]


@dataclass(frozen=True)
class PostRoute:
    """path: as Starlette reads it; summary: a line for the reader; request: an example."""

    path: str
    answer: Answer
    summary: str
    request: dict[str, Any]


POST_ROUTES = (
    PostRoute("/v1/score", native.score, "Score a conversation, or rank its responses.", {"messages": _CHAT}),
    PostRoute("/v1/rank", native.rank, "Rank responses.", {"messages": _MESSAGES, "responses": _ANSWERS}),
    PostRoute("/v1/compare", native.compare, "Compare two responses.", {"messages": _MESSAGES, "responses": _ANSWERS}),
    PostRoute(
        "/v2/models/{model}/infer",
        kserve.infer,
        "Open Inference Protocol v2: chats as JSON texts, or token ids.",
        {
            "inputs": [
                {"name": "input_ids", "datatype": "INT64", "shape": [1, 3], "data": [1, 2, 3]},
                {"name": "attention_mask", "datatype": "INT64", "shape": [1, 3], "data": [1, 1, 1]},
            ]
        },
    ),
    PostRoute(
        "/rerank",
        tei.rerank,
        "text-embeddings-inference: texts as answers to a query, best first.",
        {"query": "What is 2 + 2?", "texts": _ANSWERS, "raw_scores": True},
    ),
    PostRoute(
        "/predict",
        tei.predict,
        "text-embeddings-inference: the score of a rendered conversation, or of (query, text).",
        {"inputs": ["What is 2 + 2?", "4"], "raw_scores": True},
    ),
    PostRoute(
        "/classify",
        vllm.classify,
        "vLLM: the score of rendered conversations, or of messages.",
        {"messages": _CHAT, "use_activation": False},
    ),
    PostRoute(
        "/get_reward",
        openrlhf.get_reward,
        "OpenRLHF: rewards of rendered conversations.",
        {"query": ["<rendered conversation>"], "prompts": ["<rendered prompt>"]},
    ),
)

GET_ROUTES = {
    "/": "A page to try a model on.",
    "/health": "200 when ready, else 503.",
    "/metrics": "Prometheus metrics.",
    "/v1/models": "The models' names, families, longest prompts and objectives.",
    "/v2": "Open Inference Protocol v2: the server.",
    "/v2/health/live": "200 while the process runs.",
    "/v2/health/ready": "200 when ready, else 503.",
    "/v2/models/{model}": "Open Inference Protocol v2: a model's inputs and outputs.",
    "/v2/models/{model}/ready": "200 when that model is ready, else 503.",
    "/openapi.json": "This description, for machines.",
    "/docs": "This description, for readers.",
}
OPEN_ROUTES = ("/", "/health", "/v2/health/live", "/v2/health/ready")
"""Asked without an API key: by what starts and stops servers, and by browsers for the page, which then asks for one."""
