"""What a model folder's config.pbtxt says to our code, and where its instance shall run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rm_runtime.errors import EngineError

BUNDLE_FOLDER = "bundle"
"""Beside model.py: the whole bundle, or its manifest and tokenizer where the graph is a Triton model of its own."""


@dataclass(frozen=True)
class Settings:
    """bundle: its folder. Others as in the parameters of config.pbtxt.

    graph: the Triton model that runs the graph, None = an engine in this process. graph_batch: rows it takes at once.
    """

    bundle: Path
    device: str
    engine: str = "auto"
    threads: int | None = None
    batch_tokens: int | None = None
    graph: str | None = None
    graph_batch: int = 1


def read_settings(args: Mapping[str, str]) -> Settings:
    """args: what Triton gives to `initialize`. Raises EngineError for a parameter that is no number."""
    parameters = {name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()}

    def number(name: str) -> int | None:
        value = parameters.get(name)
        if value is not None and not (value.isdecimal() and int(value)):
            raise EngineError(f"config.pbtxt of {args['model_name']}: {name} is {value!r}, write a whole number from 1")
        return None if value is None else int(value)

    on_gpu = args["model_instance_kind"] == "GPU"
    return Settings(
        Path(args["model_repository"]) / args["model_version"] / BUNDLE_FOLDER,
        f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu",
        parameters.get("engine", "auto"),
        number("threads"),
        number("batch_tokens"),
        parameters.get("graph"),
        number("graph_batch") or 1,
    )
