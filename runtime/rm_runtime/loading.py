"""load: a bundle folder -> a model that scores."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from rm_runtime.bundle import open_bundle
from rm_runtime.engines import open_engine
from rm_runtime.families import model_class
from rm_runtime.options import RequestOptions
from rm_runtime.token_budget import default_batch_tokens


def load(
    path: str | os.PathLike[str],
    engine: str = "auto",
    threads: int | None = None,
    device: str | None = None,
    *,
    verify: bool = False,
    share_prefixes: bool = True,
    batch_tokens: int | None = None,
    **options: Any,
) -> Any:
    """Load a bundle into a model object of its family's kind.

    path: the folder rm-export wrote. engine: "auto", "onnxruntime", "openvino", "openvino-bf16" (asks for
    bfloat16 arithmetic, which decides otherwise than the bundle). threads: for the engine, None = all cores that
    affinity and CPU quota grant. device: "cpu", "cuda", "cuda:1", None = what the bundle was exported for. verify:
    also check every file's hash. share_prefixes: compute what the rows of a request have in common once, in a second
    graph, which is opened when it first pays and takes memory of its own (docs/performance.md). batch_tokens: ids,
    padding included, that one batch may hold, None = the default of the model's kind or what memory allows. options:
    RequestOptions fields (truncation, special_text).
    One short chat is scored at once, which warms the engine up and finds weights that are not finite.
    Raises BundleError if the bundle is damaged, EngineError if no engine can run it.
    """
    chosen = RequestOptions(**options)
    bundle = open_bundle(path, verify)
    budget = default_batch_tokens(bundle, device) if batch_tokens is None else batch_tokens
    chosen = replace(chosen, batch_tokens=budget)
    opened = open_engine(bundle, engine, threads, device, share_prefixes)
    model = model_class(bundle.manifest.family)(bundle, opened, chosen)
    model.probe()
    return model
