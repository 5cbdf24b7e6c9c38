"""/rerank and /predict as text-embeddings-inference has them.

Source: its OpenAPI document (huggingface.github.io/text-embeddings-inference). A query is the user's turn, a text the
answer to it; a single text of /predict is a conversation that the client rendered. Without raw_scores a score goes
through a sigmoid, as there.
"""

from __future__ import annotations

from typing import Any

from rm_runtime.errors import RequestError, RewardModelError, raise_if_asked
from rm_runtime.json_requests import RequestLine, answer_requests
from rm_runtime.serving.call import Call, fields_of, pointwise, switch_of, texts_of
from rm_runtime.serving.sizes import check_rows, check_sizes


def rerank(document: Any, call: Call) -> Any:
    """{"query", "texts", "raw_scores", "return_text", "truncate"} -> [{"index", "score", "text"}], best first."""
    fields = fields_of(document)
    query, texts = fields.get("query"), texts_of(fields, "texts")
    if not isinstance(query, str):
        raise RequestError('"query" must be a text')
    model = call.model(fields.get("model"), **_options(fields))
    request = RequestLine([{"role": "user", "content": query}], texts)
    check_sizes(model.family, [request], call.limits)
    (reply,) = answer_requests(model, [request])
    if isinstance(reply, RewardModelError):
        raise reply
    raw, shown = switch_of(fields, "raw_scores", False), switch_of(fields, "return_text", False)
    scores = reply["scores"]
    return [
        {"index": place, "score": _scaled(scores[place], raw), **({"text": texts[place]} if shown else {})}
        for place in sorted(range(len(scores)), key=lambda place: -scores[place])
    ]


def predict(document: Any, call: Call) -> Any:
    """{"inputs": "text" | ["query", "text"] | [["text"] | ["query", "text"], ...]} -> [{"score", "label"}] of each."""
    fields = fields_of(document)
    inputs = fields.get("inputs")
    batched = isinstance(inputs, list) and bool(inputs) and all(isinstance(entry, list) for entry in inputs)
    sequences = [_sequence(entry) for entry in (inputs if batched and isinstance(inputs, list) else [inputs])]
    check_rows(len(sequences), call.limits)
    model = pointwise(call.model(fields.get("model"), **_options(fields)))
    raw = switch_of(fields, "raw_scores", False)
    rendered = [place for place, texts in enumerate(sequences) if len(texts) == 1]
    pairs = [place for place, texts in enumerate(sequences) if len(texts) == 2]
    chats = [
        [{"role": "user", "content": query}, {"role": "assistant", "content": text}]
        for query, text in (sequences[place] for place in pairs)
    ]
    results = dict(
        zip(rendered, model.score_rendered([sequences[place][0] for place in rendered], "return"), strict=True)
    )
    results |= dict(zip(pairs, model.score(chats, "return"), strict=True))
    scores = raise_if_asked([results[place] for place in range(len(sequences))], "raise")
    predictions = [[{"score": _scaled(score.score, raw), "label": "LABEL_0"}] for score in scores]
    return predictions if batched else predictions[0]


def _sequence(entry: Any) -> list[str]:
    texts = [entry] if isinstance(entry, str) else entry
    if not isinstance(texts, list) or len(texts) not in (1, 2) or not all(isinstance(text, str) for text in texts):
        raise RequestError('"inputs" must be a text, a pair of texts, or an array of arrays of one or two texts')
    return texts


def _options(fields: dict[str, Any]) -> dict[str, str]:
    """As there, "truncate": false refuses a prompt that is too long; without the key the server's own rule holds."""
    if fields.get("truncate") is None:
        return {}
    return {"truncation": "cut" if switch_of(fields, "truncate", False) else "error"}


def _scaled(score: float, raw: bool) -> float:
    from rm_runtime.families.pair_pm import sigmoid

    return score if raw else sigmoid(score)
