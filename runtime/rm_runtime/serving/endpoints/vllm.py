"""/classify as vLLM has it, for models with one label.

Source: docs.vllm.ai, "Classification API". "input" holds conversations that the client rendered; "messages" is one that
is not. Unless "use_activation" is false the score goes through a sigmoid, as there.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from rm_runtime.serving.call import Call, fields_of, pointwise, switch_of, texts_of
from rm_runtime.serving.sizes import check_rows


def classify(document: Any, call: Call) -> Any:
    """{"model", "input": "text" | [...]} or {"messages": [...]} -> {"data": [{"index", "probs", ...}], ...}."""
    from rm_runtime.families.pair_pm import sigmoid

    fields = fields_of(document)
    model = pointwise(call.model(fields.get("model")))
    activated = switch_of(fields, "use_activation", True)
    if fields.get("messages") is not None:
        scores = model.score([fields["messages"]])
    else:
        text = fields.get("input")
        texts = [text] if isinstance(text, str) else texts_of(fields, "input")
        check_rows(len(texts), call.limits)
        scores = model.score_rendered(texts)
    tokens = sum(score.tokens for score in scores)
    return {
        "id": f"classify-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": call.model_name,
        "data": [
            {
                "index": index,
                "label": "LABEL_0",
                "probs": [sigmoid(score.score) if activated else score.score],
                "num_classes": 1,
            }
            for index, score in enumerate(scores)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }
