"""The OpenAPI document told to schemathesis: what it allows is answered, what it does not is refused, as it says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.generation.case import Case
from schemathesis.specs.openapi.checks import positive_data_acceptance

from fake_models import FakeEngine, pair_pm, pointwise
from prompt_cases import CASES
from rm_runtime.serving.openapi import openapi_document
from rm_runtime.serving.routes import POST_ROUTES
from served import Client, serving

POSTS = [route.path for route in POST_ROUTES]
COMPARING = ["/v1/score", "/v1/rank", "/v1/compare"]
EXAMPLES = 60
SCHEMA = schemathesis.openapi.from_dict(openapi_document(["rm"]))
BOUNDED = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


PROMPT = CASES["armorm training: BOS text removed, BOS added"].limited(max_length=4096)
"""Of a model that reads any text as a rendered conversation."""


@pytest.fixture(scope="module")
def pointwise_client() -> Iterator[Client]:
    with serving({"rm": pointwise(lambda rendered: {"score": float(len(rendered))}, prompt=PROMPT)}) as running:
        yield running


@pytest.fixture(scope="module")
def pairwise_client() -> Iterator[Client]:
    model: Any = pair_pm(lambda a, b: (0.0, 0.0))
    model.engine = FakeEngine(lambda ids: {"logits": (float(ids.sum() % 7), 1.0)})  # it need not find the answers
    with serving({"rm": model}) as running:
        yield running


def tensors_made_true(case: Case) -> Case:
    """One input whose shape is that of its data and whose texts are JSON: what a schema cannot say."""
    if case.operation.path.endswith("infer"):
        (tensor, *_), case.body["outputs"] = case.body["inputs"], None
        length = len(tensor["data"])
        if tensor["name"] == "chats":
            chats = [{"messages": [{"role": "user", "content": text}]} for text in tensor["data"]]
            tensor |= {"data": [json.dumps(chat) for chat in chats], "shape": [length]}
        else:
            tensor |= {"name": "input_ids", "data": [1] * (length + 1), "shape": [1, length + 1]}
        case.body["inputs"] = [tensor]
    return case


def suits(case: Case) -> bool:
    """Whether it is for a model like these, which are not PairRM."""
    return '"candidates"' not in json.dumps(case.body)


def statuses(client: Client, method: str, path: str, mode: GenerationMode, **excluded: Any) -> Counter[int]:
    """How often each status came, while every check of schemathesis held."""
    seen: Counter[int] = Counter()
    cases = SCHEMA[path][method].as_strategy(generation_mode=mode)
    if mode is GenerationMode.POSITIVE and method == "POST":
        cases = cases.filter(suits).map(tensors_made_true)

    @BOUNDED
    @given(case=cases)
    def ask(case: Case) -> None:
        reply = case.call_and_validate(base_url=f"http://127.0.0.1:{client.port}", **excluded)
        seen[reply.status_code] += 1

    ask()
    return seen


def test_the_document_is_the_one_that_is_served(pointwise_client: Client) -> None:
    assert pointwise_client.get("/openapi.json").json == openapi_document(["rm"])


@pytest.mark.parametrize("path", POSTS)
def test_what_the_schema_allows_is_answered_as_the_schema_says(pointwise_client: Client, path: str) -> None:
    seen = statuses(pointwise_client, "POST", path, GenerationMode.POSITIVE)
    assert seen.total() >= EXAMPLES // 2
    assert set(seen) == {200}


@pytest.mark.parametrize("path", COMPARING)
def test_a_model_that_compares_answers_what_the_schema_allows_or_says_that_it_cannot(
    pairwise_client: Client, path: str
) -> None:
    acceptance = [positive_data_acceptance]
    seen = statuses(pairwise_client, "POST", path, GenerationMode.POSITIVE, excluded_checks=acceptance)
    assert set(seen) <= {200, 422}
    assert seen[200] >= EXAMPLES // 4


@pytest.mark.parametrize("path", POSTS)
def test_what_the_schema_does_not_allow_is_refused_as_the_schema_says(pointwise_client: Client, path: str) -> None:
    seen = statuses(pointwise_client, "POST", path, GenerationMode.NEGATIVE)
    assert seen.total() >= EXAMPLES // 2
    assert set(seen) <= {400, 404, 422}


@SCHEMA.parametrize()
@BOUNDED
def test_bodies_at_the_edges_of_the_schema_are_answered_or_refused_as_the_schema_says(
    case: Case, pointwise_client: Client
) -> None:
    case.call_and_validate(
        base_url=f"http://127.0.0.1:{pointwise_client.port}", excluded_checks=[positive_data_acceptance]
    )
