"""What the Triton models decide without a server: lengths of rows, and where they run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_runtime.errors import EngineError
from rm_runtime.triton.lengths import bucket_length, padded_to_bucket
from rm_runtime.triton.settings import Settings, read_settings


@given(length=st.integers(0, 40_000), longest=st.integers(1, 40_000))
def test_a_bucket_holds_its_row_and_is_a_bucket_itself(length: int, longest: int) -> None:
    length = min(length, longest)
    bucket = bucket_length(length, longest)
    assert max(1, length) <= bucket <= longest
    assert bucket_length(bucket, longest) == bucket
    assert bucket - length < max(17, length / 8 + 1)


def test_there_are_few_buckets() -> None:
    assert len({bucket_length(length, 4096) for length in range(4097)}) == 48
    assert [bucket_length(length, 4096) for length in (1, 16, 17, 128, 129, 257, 4000)] == [
        16,
        16,
        32,
        128,
        144,
        288,
        4096,
    ]
    assert bucket_length(20, 24) == 24


def test_rows_are_padded_on_the_right_to_the_bucket_of_the_longest() -> None:
    ids, mask = padded_to_bucket([np.array([1, 2, 3]), np.arange(1, 18)], 9, 512)
    assert ids.shape == mask.shape == (2, 32)
    assert ids[0].tolist() == [1, 2, 3, *[9] * 29]
    assert mask.sum(axis=1).tolist() == [3, 17]


def arguments(**parameters: str) -> dict[str, Any]:
    config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    return {
        "model_config": json.dumps(config),
        "model_repository": "/repo/rm",
        "model_version": "3",
        "model_name": "rm",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }


def test_settings_come_from_the_configuration_and_the_instance() -> None:
    assert read_settings(arguments()) == Settings(Path("/repo/rm/3/bundle"), "cpu")
    on_gpu = arguments(threads="2", engine="tensorrt") | {
        "model_instance_kind": "GPU",
        "model_instance_device_id": "1",
    }
    assert read_settings(on_gpu) == Settings(Path("/repo/rm/3/bundle"), "cuda:1", "tensorrt", 2)
    split = read_settings(arguments(graph="rm_graph", graph_batch="8", batch_tokens="512"))
    assert (split.graph, split.graph_batch, split.batch_tokens) == ("rm_graph", 8, 512)


@pytest.mark.parametrize("value", ["0", "-1", "many", ""])
def test_a_parameter_that_is_no_number_is_named(value: str) -> None:
    with pytest.raises(EngineError, match=f"config.pbtxt of rm: threads is '{value}'"):
        read_settings(arguments(threads=value))
