"""Reports as a benchmark writes them, for tests of what reads them."""

from __future__ import annotations

import copy
from typing import Any

_CONTENDER = {
    "reference": False,
    "failure": None,
    "engine": "onnxruntime",
    "versions": {"onnxruntime": "1.31.1"},
    "load_seconds": 2.0,
    "first_row_seconds": 0.5,
    "loaded_bytes": 2**30,
    "peak_bytes": 2**31,
    "single_stream": {"queries": 4, "p50_ms": 20.0, "p90_ms": 40.0, "p99_ms": 80.0, "mean_ms": 30.0},
    "offline": {
        "seconds": 2.0,
        "tokens_per_second": 1000.0,
        "conversations_per_second": 2.0,
        "rounds": [2.0, 2.0],
    },
    "server": {"rate": 1.5, "p50_ms": 30.0, "p99_ms": 900.0, "throughput": 1.4, "goodput": 1.25, "met": True},
}
_REPORT = {
    "kind": "rm-runtime bench",
    "format": 1,
    "bundle": {
        "path": "b",
        "sha256": "0" * 64,
        "source": "owner/name",
        "family": "armorm",
        "precision": "int8",
        "target": "cpu",
    },
    "machine": {
        "cpu": "A CPU",
        "flags": ["avx2"],
        "cores": {"machine": 4, "affinity": 2, "quota": None, "usable": 2},
        "memory_gib": 8.0,
        "load_average": 0.1,
        "platform": "Linux",
        "python": "3.11.9",
        "versions": {"numpy": "2.3"},
    },
    "settings": {
        "engines": ["auto"],
        "versus": None,
        "scenarios": ["single-stream", "offline", "server"],
        "queries": 4,
        "warmup": 1,
        "rounds": 2,
        "seed": 0,
        "rate": None,
        "p99_ms": 1000.0,
        "threads": None,
        "device": None,
        "batch_tokens": 4096,
        "checkpoint": None,
        "chats": None,
        "reference_batch_rows": 8,
        "share_prefixes": True,
        "one_at_a_time": False,
    },
    "rows": {
        "count": 4,
        "tokens": 2000,
        "shortest": 100,
        "median": 400,
        "longest": 1000,
        "sha256": "1" * 64,
        "origin": {"source": "built-in"},
    },
    "auto": "onnxruntime",
}


def contender(name: str = "onnxruntime", **changes: Any) -> dict[str, Any]:
    return {"name": name, **copy.deepcopy(_CONTENDER), **changes}


def failed(name: str) -> dict[str, Any]:
    return {"name": name, "reference": False, "failure": f"{name}: it <broke>"}


def report(*contenders: dict[str, Any]) -> dict[str, Any]:
    return {**copy.deepcopy(_REPORT), "contenders": list(contenders) or [contender()]}
