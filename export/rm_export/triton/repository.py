"""Writing a Triton model repository: whole or not at all, every model folder complete in itself, no links to follow.

REPO/repository.json            what it was made from
REPO/NAME/                      chats -> replies, score
REPO/NAME_graph/                the graph, for ONNX Runtime or TensorRT; not with the backend python
REPO/NAME_tokenizer/  NAME_ensemble/   chats -> the graph's outputs; families that score one conversation
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rm_export.bundle import FolderKind, staged_folder, write_file
from rm_export.errors import ExportError
from rm_export.triton.configs import (
    WARM_UP_CHATS,
    Models,
    ensemble_config,
    graph_config,
    is_pointwise,
    scoring_config,
    tokenizer_config,
)
from rm_export.triton.options import Backend, Gpus, TritonOptions
from rm_export.triton.plans import loadable_plans
from rm_export.triton.prototext import Message, to_prototext
from rm_runtime.bundle import MANIFEST_NAME, TOKENIZER_NAME, Bundle, open_bundle
from rm_runtime.manifest import EnginePlan
from rm_runtime.triton.settings import BUNDLE_FOLDER

REPOSITORY = FolderKind("model repository of rm-export triton", "repository.json")

_MODEL_PY = '''"""Needs rm_runtime in the Python of Triton's backend: pip install '{package}'."""

from rm_runtime.triton.{module} import {model} as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
_WARM_UP: tuple[Mapping[str, Any], Mapping[str, Any]] = (
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]},
    {"messages": [{"role": "user", "content": "Hello"}], "responses": ["Hi", "What?"]},
)
"""For families that score a conversation, and for those that compare answers."""

_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES)


@dataclass(frozen=True)
class Written:
    """models: their names, the one to ask first. graph_batch: rows the graph is given at once, None = no such model."""

    models: tuple[str, ...]
    graph_batch: int | None


def write_repository(path: Path, output: Path, options: TritonOptions, force: bool = False) -> Written:
    """Write the repository of a bundle.

    The bundle's hashes are checked. Its files are hard-linked where that is possible, else copied. force: replace an
    existing repository. Raises BundleError; ExportError for options that do not fit the bundle, and for an output that
    exists.
    """
    bundle = open_bundle(path, verify=True)
    options = _completed(options, bundle)
    models = Models(options.name or "")
    gpus = options.gpus or ()
    plans = loadable_plans(bundle) if options.backend == "tensorrt" else {}
    options = replace(options, graph_batch=_graph_batch(options, plans))
    folders = {models.scoring: scoring_config(bundle.manifest, models, options, gpus)}
    if options.backend != "python":
        folders[models.graph] = graph_config(bundle.manifest, models, options, gpus, plans)
        if is_pointwise(bundle.manifest):
            folders[models.tokenizer] = tokenizer_config(bundle.manifest, models, options)
            folders[models.ensemble] = ensemble_config(bundle.manifest, models, options)
    with staged_folder(output, force, REPOSITORY) as stage:
        for name, config in folders.items():
            _write_model(stage / name, config, bundle, models, options, plans)
        write_file(stage, REPOSITORY.marker, _described(bundle, folders, options).encode())
    return Written(tuple(folders), None if options.backend == "python" else options.graph_batch)


def _completed(options: TritonOptions, bundle: Bundle) -> TritonOptions:
    """With the bundle's own name, backend and device where nothing was chosen."""
    manifest = bundle.manifest
    name = options.name or re.sub(r"[^A-Za-z0-9_.-]+", "_", bundle.path.resolve().name).lstrip(".-")
    backend: Backend = options.backend or ("tensorrt" if manifest.target == "tensorrt" else "onnxruntime")
    if backend == "python" and options.graph_batch != TritonOptions.graph_batch:
        raise ExportError("--graph-batch is of the graph as a model of its own, which the backend python has not")
    if backend != "python" and (options.engine != "auto"):
        raise ExportError(f"--engine is for the backend python; here the engine is Triton's {backend}")
    gpus: Gpus = (() if manifest.target == "cpu" else "all") if options.gpus is None else options.gpus
    if backend == "tensorrt" and not gpus:
        raise ExportError("TensorRT runs on GPUs only: pass --gpus, or --backend onnxruntime")
    return replace(options, name=name, backend=backend, gpus=gpus)


def _graph_batch(options: TritonOptions, plans: Mapping[str, EnginePlan]) -> int:
    """Every profile has to take it: Triton checks its largest batch against each."""
    batches = [profile["input_ids"][2][0] for plan in plans.values() for profile in plan.profiles]
    return min([options.graph_batch, *batches])


def _write_model(
    folder: Path,
    config: Message,
    bundle: Bundle,
    models: Models,
    options: TritonOptions,
    plans: Mapping[str, EnginePlan],
) -> None:
    version_folder = folder / str(options.model_version)
    version_folder.mkdir(parents=True)
    write_file(folder, "config.pbtxt", to_prototext(config).encode())
    if folder.name == models.graph:
        _put_graph(bundle, version_folder, plans)
    elif folder.name == models.ensemble:
        write_file(version_folder, ".keep", b"")  # the folder has to be there, and object stores keep no empty ones
    else:
        alone = options.backend == "python"
        which = ("tokenizing", "TokenizerModel") if folder.name == models.tokenizer else ("scoring", "ScoringModel")
        package = f"rm-export[{bundle.manifest.target}]" if alone else "rm-export"
        program = _MODEL_PY.format(package=package, module=which[0], model=which[1])
        write_file(version_folder, "model.py", program.encode())
        names = bundle.manifest.files if alone else (TOKENIZER_NAME,)
        _put(bundle.path, version_folder / BUNDLE_FOLDER, (MANIFEST_NAME, *names))
        if "model_warmup" in config:
            (folder / "warmup").mkdir()
            write_file(folder / "warmup", WARM_UP_CHATS, _as_bytes_tensor(_WARM_UP[not is_pointwise(bundle.manifest)]))


def _put_graph(bundle: Bundle, folder: Path, plans: Mapping[str, EnginePlan]) -> None:
    """model.onnx and the data file it names, or the plans."""
    if plans:
        for name, plan in plans.items():
            _link_or_copy(bundle.path / plan.file, folder / name)
        return
    graph = bundle.graph_path().name
    data = [name for name in bundle.manifest.files if name == f"{graph}.data"]
    _link_or_copy(bundle.graph_path(), folder / "model.onnx")
    for name in data:
        _link_or_copy(bundle.path / name, folder / name)


def _put(source: Path, folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(source / name, folder / name)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        shutil.copyfile(source, target, follow_symlinks=False)


def _as_bytes_tensor(chat: Mapping[str, Any]) -> bytes:
    text = json.dumps(chat).encode()
    return len(text).to_bytes(4, "little") + text


def _described(bundle: Bundle, models: Iterable[str], options: TritonOptions) -> str:
    manifest = bundle.manifest
    document = {
        "bundle": {
            "path": str(bundle.path.resolve()),
            "sha256": hashlib.sha256((bundle.path / MANIFEST_NAME).read_bytes()).hexdigest(),
            "family": manifest.family,
            "precision": manifest.precision,
            "target": manifest.target,
        },
        "models": list(models),
        "options": vars(options),
        "rm-export": version("rm-export"),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
