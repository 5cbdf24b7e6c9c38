"""JSON schemas of what is posted and of what is answered: a body they allow has the right form, any other is refused.

What a schema cannot say is left to 422: a role that the model's template does not know, a shape that is not that of its
data. Keys that no schema names are ignored, null means absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Schema = dict[str, Any]


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _array(items: Schema, at_least: int = 0, at_most: int | None = None) -> Schema:
    array: Schema = {"type": "array", "items": items}
    if at_least:
        array["minItems"] = at_least
    return array if at_most is None else {**array, "maxItems": at_most}


def _object(required: Sequence[str] = (), **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


def _maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, _NULL]}


_NULL: Schema = {"type": "null"}
_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SWITCH: Schema = {"type": ["boolean", "null"]}
_NUMBERS = _array(_NUMBER)
_TEXTS = _array(_TEXT, 1)
_MESSAGE: Schema = {**_object(["role", "content"], role=_TEXT, content=_TEXT), "additionalProperties": False}
_MESSAGES = _array(_ref("Message"), 1)


def _asked(answers: Schema, alone: bool = False) -> Schema:
    """One request of /v1. answers: those that are ranked; alone: whether a conversation may stand without."""
    ranked = _object(["messages", "responses"], messages=_array(_ref("Message")), responses=answers)
    scored = _object(["messages"], messages=_MESSAGES, responses=_NULL)
    of_pairrm = _object(
        ["input", "candidates"], messages=_NULL, input=_TEXT, candidates=answers, instruction=_maybe(_TEXT)
    )
    return {"anyOf": [*([scored] if alone else []), ranked, of_pairrm]}


def _one_or_many(name: str) -> Schema:
    """A body of /v1: a request, or "requests" of them."""
    one = {"allOf": [_ref(name), _object(requests=_NULL)]}
    good = _object(["requests"], requests=_array(_ref(name)), errors={"enum": ["raise", None]})
    any_at_all = _object(["requests", "errors"], requests=_array({}), errors={"const": "return"})
    return {"allOf": [_object(details=_SWITCH), {"anyOf": [one, good, any_at_all]}]}


def _tensor(name: str, datatype: str, shape: Schema, values: Schema) -> Schema:
    return _object(
        ["name", "datatype", "shape", "data"],
        name={"const": name},
        datatype={"const": datatype},
        shape=shape,
        data=values,
    )


_TABLE = {"anyOf": [_array(_COUNT), _array(_array(_COUNT))]}
_INFER = _object(
    ["inputs"],
    id=_maybe(_TEXT),
    inputs=_array(
        {
            "anyOf": [
                _tensor(
                    "chats", "BYTES", _array(_COUNT, 1, 1), _array({**_TEXT, "contentMediaType": "application/json"})
                ),
                *(_tensor(name, "INT64", _array(_COUNT, 2, 2), _TABLE) for name in ("input_ids", "attention_mask")),
            ]
        },
        1,
        2,
    ),
    outputs=_maybe(_array(_object(["name"], name=_TEXT))),
)
_TENSOR = _object(
    ["name", "datatype", "shape", "data"],
    name=_TEXT,
    datatype={"enum": ["BYTES", "FP32"]},
    shape=_array(_COUNT),
    data=_array({"type": ["string", "number"]}),
)
_DESCRIBED = _array(
    _object(["name", "datatype", "shape"], name=_TEXT, datatype=_TEXT, shape=_array({"type": "integer"}))
)
_CUTS = _array(_object(["tokens", "side", "part"], tokens=_COUNT, side={"enum": ["left", "right"]}, part=_TEXT))
_PLACES = _array({"type": "integer", "minimum": 1})
_SCORED = _object(
    ["score"],
    **dict.fromkeys(("rewards", "gating", "coefficients", "helpsteer", "logits"), _NUMBERS),
    score=_NUMBER,
    tokens=_COUNT,
    truncated=_CUTS,
)
_ANSWERS = {
    "answers": _array({"anyOf": [_ref("Score"), _object(["tokens"], tokens=_COUNT, truncated=_CUTS)]}, 1),
    "probabilities": _array(_NUMBERS, 1),
}
_RANKED = _object(["ranks", "scores"], ranks=_PLACES, scores=_NUMBERS, truncated=_array(_CUTS), **_ANSWERS)
_COMPARED = _object(
    ["ranks", "scores"],
    ranks=_PLACES,
    scores=_NUMBERS,
    probability={"type": "number", "minimum": 0, "maximum": 1},
    order_probabilities=_array(_NUMBER, 2, 2),
    logits=_array(_array(_NUMBER, 2, 2), 2, 2),
    **_ANSWERS,
)


def _replies(*replies: str) -> Schema:
    refused = _object(["error"], error=_TEXT)
    many = _object(["replies"], replies=_array({"anyOf": [*map(_ref, replies), refused]}))
    return {"anyOf": [*map(_ref, replies), many]}


_PREDICTION = _array(_object(["score", "label"], score=_NUMBER, label=_TEXT), 1, 1)
_CLASS = _object(["index", "label", "probs", "num_classes"], index=_COUNT, label=_TEXT, probs=_NUMBERS)

COMPONENTS: dict[str, Schema] = {
    "Message": _MESSAGE,
    "ScoreRequest": _asked(_TEXTS, alone=True),
    "RankRequest": _asked(_TEXTS),
    "CompareRequest": _asked(_array(_TEXT, 2, 2)),
    "Score": _SCORED,
    "Ranking": _RANKED,
    "Comparison": _COMPARED,
    "Error": _object(
        ["error", "error_type"],
        error=_TEXT,
        error_type=_TEXT,
        rows=_array(_object(["row", "error"], row=_COUNT, error=_TEXT)),
    ),
}
"""Schemas that others name."""

BODIES: dict[str, Schema] = {
    "/v1/score": _one_or_many("ScoreRequest"),
    "/v1/rank": _one_or_many("RankRequest"),
    "/v1/compare": _one_or_many("CompareRequest"),
    "/v2/models/{model}/infer": _INFER,
    "/rerank": _object(
        ["query", "texts"], query=_TEXT, texts=_TEXTS, raw_scores=_SWITCH, return_text=_SWITCH, truncate=_SWITCH
    ),
    "/predict": _object(
        ["inputs"],
        inputs={"anyOf": [_TEXT, _array(_TEXT, 1, 2), _array(_array(_TEXT, 1, 2), 1)]},
        raw_scores=_SWITCH,
        truncate=_SWITCH,
    ),
    "/classify": {
        "anyOf": [
            _object(["messages"], messages=_MESSAGES, use_activation=_SWITCH),
            _object(["input"], messages=_NULL, input={"anyOf": [_TEXT, _TEXTS]}, use_activation=_SWITCH),
        ]
    },
    "/get_reward": _object(["query"], query=_TEXTS),
}
"""What is posted, by path, besides the model's name."""

REPLIES: dict[str, Schema] = {
    "/v1/score": _replies("Score", "Ranking", "Comparison"),
    "/v1/rank": _replies("Ranking", "Comparison"),
    "/v1/compare": _replies("Comparison"),
    "/v2/models/{model}/infer": _object(
        ["model_name", "model_version", "outputs"],
        model_name=_TEXT,
        model_version=_TEXT,
        id=_TEXT,
        outputs=_array(_TENSOR),
    ),
    "/rerank": _array(_object(["index", "score"], index=_COUNT, score=_NUMBER, text=_TEXT), 1),
    "/predict": {"anyOf": [_PREDICTION, _array(_PREDICTION, 1)]},
    "/classify": _object(
        ["id", "object", "created", "model", "data", "usage"],
        data=_array(_CLASS, 1),
        usage=_object(["prompt_tokens", "total_tokens", "completion_tokens"], prompt_tokens=_COUNT),
    ),
    "/get_reward": _object(["rewards", "scores"], rewards=_NUMBERS, scores=_NUMBERS),
    "/health": _object(["ready"], ready={"const": True}),
    "/v1/models": _object(
        ["object", "data"],
        data=_array(_object(["id", "object", "family", "max_length"], id=_TEXT, family=_TEXT, max_length=_COUNT), 1),
    ),
    "/v2": _object(["name", "version", "extensions"], name=_TEXT, version=_TEXT, extensions=_array(_TEXT)),
    "/v2/health/live": _object(["live"], live={"const": True}),
    "/v2/health/ready": _object(["ready"], ready={"const": True}),
    "/v2/models/{model}": _object(
        ["name", "versions", "platform", "inputs", "outputs"], name=_TEXT, inputs=_DESCRIBED, outputs=_DESCRIBED
    ),
    "/v2/models/{model}/ready": _object(["ready"], ready={"const": True}),
    "/openapi.json": _object(["openapi", "paths"]),
}
"""What is answered with 200 in JSON, by path."""


def body_of(path: str, models: Sequence[str]) -> Schema:
    """What is posted there: a body, with the name of a model unless the path has it."""
    if "{model}" in path:
        return BODIES[path]
    return {"allOf": [_object(model={"enum": [*models, None]}), BODIES[path]]}
