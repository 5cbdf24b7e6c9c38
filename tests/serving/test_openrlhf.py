"""OpenRLHF's own rollout code, as tests/peers/record_openrlhf.py recorded it, asks this server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fake_models import answer_of, pointwise
from served import serving

ROLLOUTS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "data" / "peers" / "openrlhf.json").read_text(encoding="utf-8")
)["rollouts"]


@pytest.mark.parametrize("rollout", ROLLOUTS)
def test_a_rollout_of_openrlhf_reads_the_scores_of_its_chat(rollout: dict[str, Any]) -> None:
    """The reply is the one that the recorded client turned into `read`."""
    model = pointwise(lambda rendered: {"score": float(answer_of(rendered))})
    headers = {name: value for name, value in rollout["headers"].items() if name != "content-length"}
    with serving({"rm": model}) as client:
        answer = client.ask("POST", rollout["path"], rollout["body"].encode(), **headers)
    assert answer.status == 200
    assert answer.json == rollout["reply"]
    assert rollout["read"]["scores"] == answer.json["scores"] == rollout["read"]["reward"]
