"""The GPU benchmark's dry run: the same code on the CPU, so that it works on the day there is a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import gpu
from gpu_speed import flops


def test_the_dry_run_gives_figures_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report.json"
    monkeypatch.setattr(gpu, "DRY_CASES", ("grm",))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run", "--stages", "parity,1B,pairrm", "--json", str(report)])
    gpu.main()
    stages = json.loads(report.read_text())["stages"]
    assert [(row["checkpoint"], row["precision"]) for row in stages["parity"]["rows"]] == [
        (checkpoint, precision) for checkpoint in ("grm", "demo") for precision in ("fp16", "fp32")
    ]
    for row in stages["parity"]["rows"]:
        assert row["clear_flips"] == row["refused_by_one"] == 0
        assert 0 < row["max_error_std"] < 0.02
        assert row["kernels"] > 0
        assert row["elsewhere"] == {}
    contenders = [row["contender"] for row in stages["1B"]["rows"]]
    assert contenders.count("ONNX Runtime fp16, shared prefix") == 1
    assert contenders.count("HF bfloat16, sdpa") == 4
    assert {row["work"] for row in stages["pairrm"]["rows"]} == {"8 x 512", "2 x 2048"}
    assert all(row["tokens_per_second"] > 0 for stage in ("1B", "pairrm") for row in stages[stage]["rows"])


def test_the_operations_of_a_shared_prefix_are_counted_once() -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    parameters = 8 * 8 + 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16  # query, output; key, value; the MLP
    assert flops(config, rows=1, length=10, prefix=0) == 2 * (2 * parameters * 10 + 4 * 10**2 / 2 * 8)
    assert flops(config, rows=1, length=10, prefix=6) == flops(config, rows=1, length=10, prefix=0)
    saved = flops(config, rows=3, length=10, prefix=0) - flops(config, rows=3, length=10, prefix=6)
    assert saved == 2 * flops(config, rows=1, length=6, prefix=0)
