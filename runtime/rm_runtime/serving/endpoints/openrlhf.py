"""/get_reward as OpenRLHF's trainers ask for it (openrlhf/trainer/ray, remote_rm_url).

"query" holds whole conversations that the trainer rendered; "prompts" and "labels" are for reward functions that need
them, and are not read.
"""

from __future__ import annotations

from typing import Any

from rm_runtime.serving.call import Call, fields_of, pointwise, texts_of
from rm_runtime.serving.sizes import check_rows


def get_reward(document: Any, call: Call) -> Any:
    """{"query": [...], "prompts": [...]} -> {"rewards": [...], "scores": [...]}, both the model's scores."""
    fields = fields_of(document)
    texts = texts_of(fields, "query")
    check_rows(len(texts), call.limits)
    results = pointwise(call.model(fields.get("model"))).score_rendered(texts)
    scores = [result.score for result in results]
    return {"rewards": scores, "scores": scores}
