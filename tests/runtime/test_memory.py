"""Memory that may still be taken: the machine's and what control groups leave, both versions; what follows from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fake_models import write_scalar_bundle
from rm_runtime import RequestError, engines, load
from rm_runtime import token_budget as rm_budget
from rm_runtime.batching import DEFAULT_BATCH_TOKENS
from rm_runtime.bundle import Bundle, open_bundle
from rm_runtime.engines import onnxruntime_engine, open_engine
from rm_runtime.engines.memory import available_bytes
from rm_runtime.engines.shared_prefix import SharedPrefixEngine
from rm_runtime.token_budget import ENCODER_BATCH_TOKENS, LEAST_BATCH_TOKENS, activation_bytes, token_budget

UNIFIED = "sys/fs/cgroup"
MEMORY = "sys/fs/cgroup/memory"
MIB = 2**20
LLAMA_8B = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336}


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "mib"),
    [
        ({}, math.inf),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  2048 kB\n"}, 2),
        ({f"{UNIFIED}/app/memory.max": "max\n", f"{UNIFIED}/app/memory.current": f"{MIB}\n"}, math.inf),
        ({f"{UNIFIED}/app/memory.max": f"{9 * MIB}\n", f"{UNIFIED}/app/memory.current": f"{4 * MIB}\n"}, 5),
        (
            {
                f"{UNIFIED}/app/memory.max": f"{9 * MIB}\n",
                f"{UNIFIED}/app/memory.current": f"{8 * MIB}\n",
                f"{UNIFIED}/app/memory.stat": f"anon {MIB}\nactive_file {2 * MIB}\ninactive_file {MIB}\n",
            },
            4,
        ),
        ({f"{UNIFIED}/memory.max": f"{3 * MIB}\n", f"{UNIFIED}/memory.current": f"{MIB}\n"}, 2),
        (
            {f"{MEMORY}/app/memory.limit_in_bytes": f"{7 * MIB}\n", f"{MEMORY}/app/memory.usage_in_bytes": "0\n"},
            7,
        ),
        ({f"{UNIFIED}/app/memory.max": f"{MIB}\n", f"{UNIFIED}/app/memory.current": f"{2 * MIB}\n"}, 0),
    ],
    ids=[
        "nothing is told",
        "machine",
        "unlimited",
        "version 2",
        "cached files",
        "bound from above",
        "version 1",
        "full",
    ],
)
def test_available_memory_is_what_machine_and_control_groups_leave(
    tmp_path: Path, files: dict[str, str], mib: float
) -> None:
    groups = "4:memory:/app\n" if any(f"{MEMORY}/" in name for name in files) else "0::/app\n"
    assert available_bytes(machine(tmp_path, {"proc/self/cgroup": groups, **files})) == mib * MIB


def test_a_batch_holds_the_default_unless_its_activations_would_not_fit() -> None:
    a_token = activation_bytes(LLAMA_8B)
    assert token_budget(LLAMA_8B, math.inf) == DEFAULT_BATCH_TOKENS
    assert token_budget(LLAMA_8B, 2 * 1000 * a_token) == 1000
    assert token_budget(LLAMA_8B, -1e9) == LEAST_BATCH_TOKENS
    assert token_budget({"model_type": "deberta-v2", "hidden_size": 1024}, math.inf) == ENCODER_BATCH_TOKENS
    assert token_budget({}, 1e6) == DEFAULT_BATCH_TOKENS


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(write_scalar_bundle(tmp_path / "bundle"))


def test_load_takes_the_budget_that_fits_or_the_one_asked_for(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bundle, "weight_bytes", property(lambda self: 1000))
    budgets: list[float] = []
    monkeypatch.setattr(rm_budget, "token_budget", lambda architecture, free: budgets.append(free) or 777)
    monkeypatch.setattr(rm_budget, "available_bytes", lambda: 5000.0)
    assert load(bundle.path, "onnxruntime", threads=1).options.batch_tokens == 777
    assert budgets == [4000]
    assert load(bundle.path, "onnxruntime", threads=1, batch_tokens=55).options.batch_tokens == 55
    with pytest.raises(RequestError, match="batch_tokens=0: at least 1"):
        load(bundle.path, "onnxruntime", threads=1, batch_tokens=0)


def test_weights_that_do_not_fit_once_more_stay_in_their_file(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]  # untyped
        def add_session_config_entry(self, key: str, value: str) -> None:
            kept.append(f"{key}={value}")
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(onnxruntime_engine.onnxruntime, "SessionOptions", Options)
    monkeypatch.setattr(Bundle, "weight_bytes", property(lambda self: 1000))
    inputs = {"input_ids": np.array([[10, 20]]), "attention_mask": np.array([[1, 1]])}
    scores: list[Any] = []
    for available, expected in ((1000.0, []), (999.0, ["session.disable_prepacking=1"])):
        monkeypatch.setattr(onnxruntime_engine, "available_bytes", lambda left=available: left)
        scores.append(open_engine(bundle, "onnxruntime", threads=1).run(inputs)["score"])
        assert kept == expected
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize(
    ("engine", "available", "shares"), [("openvino", 1999, False), ("openvino", 2000, True), ("onnxruntime", 0, True)]
)
def test_no_second_graph_where_its_copy_of_the_weights_does_not_fit(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, engine: str, available: int, shares: bool
) -> None:
    monkeypatch.setattr(Bundle, "weight_bytes", property(lambda self: 1000))
    monkeypatch.setitem(bundle.manifest.graphs, "prefix", "model.onnx")  # type: ignore[arg-type]  # a dict underneath
    for module in (engines, onnxruntime_engine):
        monkeypatch.setattr(module, "available_bytes", lambda: float(available))
    assert isinstance(open_engine(bundle, engine, threads=1), SharedPrefixEngine) == shares
