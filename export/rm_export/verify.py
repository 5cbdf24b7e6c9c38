"""Prove a bundle: run it and the torch reference on the same token ids, and write down how they differ."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from rm_calibration.conversations import default_conversations
from rm_export.bundle import replace_file
from rm_export.engine_agreement import EngineAgreement, compare_with_onnxruntime
from rm_export.errors import ExportError
from rm_export.families import pairrm
from rm_export.measure import measure
from rm_export.options import Options
from rm_export.proof import package_versions, parity_files, publish_parity
from rm_export.questions import encode_questions, questions_of
from rm_export.reference import open_reference
from rm_runtime.batching import run_rows
from rm_runtime.bundle import open_bundle
from rm_runtime.engines import open_engine
from rm_runtime.errors import PromptError
from rm_runtime.prompt_spec import ChatPrompt
from rm_runtime.prompts import Prompt

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from rm_calibration.conversations import Example
    from rm_export.checkpoint import Checkpoint
    from rm_export.parity import Parity
    from rm_export.questions import Question
    from rm_runtime.bundle import Bundle

    Outputs = Mapping[str, NDArray[np.float32]]


def verify_bundle(
    bundle_path: str | os.PathLike[str],
    checkpoint: Checkpoint,
    conversations: Sequence[Example] | None = None,
    *,
    engine: str = "auto",
    threads: int | None = None,
    output: Path | None = None,
    device: str | None = None,
    options: Options | None = None,
    on_row: Callable[[int, int], None] | None = None,
) -> Parity:
    """Compare a bundle with the float32 reference of its checkpoint; write parity.json and parity.html.

    checkpoint: what the bundle was exported from. conversations: what to compare on, None = the default set.
    engine, threads, device: as rm_runtime.load. output: a folder for the two files; None puts them into the
    bundle, whose manifest then lists them. options: those of the export (PairRM's backbone). on_row: told
    (rows done, rows) as the reference, by far the slower side, goes on.
    Raises ExportError if the checkpoint is another one, or nothing could be compared.
    """
    bundle = open_bundle(bundle_path)
    manifest = bundle.manifest
    if manifest.source.config_sha256 != checkpoint.config_sha256:
        raise ExportError(
            f"{bundle.path} was made from {manifest.source.id}, whose config.json is not that of "
            f"{checkpoint.id}; name the bundle's own checkpoint and revision"
        )
    examples = default_conversations() if conversations is None else list(conversations)
    asked, not_rendered = _asked(bundle, examples)
    rows = [np.asarray(prompt.ids, np.int64) for _, prompt in asked]
    name, measured = _run_bundle(bundle, rows, engine, threads, device)
    backbone = pairrm.backbone_config(checkpoint, options or Options()) if manifest.family == "pairrm" else None
    reference = open_reference(checkpoint, manifest.family, manifest.parameters, backbone)
    done = iter(range(1, len(rows) + 1))
    expected = reference.run(rows, (lambda: on_row(next(done), len(rows))) if on_row else None, threads)
    parity = measure(
        manifest,
        asked,
        expected,
        measured,
        engine=name,
        versions=package_versions(),
        examples=len(examples),
        not_rendered=not_rendered,
    )
    files = parity_files(parity, examples)
    if output is None:
        publish_parity(bundle, parity, files)
    else:
        output.mkdir(parents=True, exist_ok=True)
        for file_name, content in files.items():
            replace_file(output / file_name, content)
    return parity


def compare_engines(
    bundle_path: str | os.PathLike[str],
    conversations: Sequence[Example] | None = None,
    *,
    engine: str,
    threads: int | None = None,
    device: str | None = None,
) -> EngineAgreement:
    """Compare an engine with ONNX Runtime's CPU on a bundle's own prompts; no checkpoint and no torch are needed.

    Raises ExportError if nothing could be compared, EngineError if one of them cannot run the bundle.
    """
    bundle = open_bundle(bundle_path)
    asked, _ = _asked(bundle, default_conversations() if conversations is None else conversations)
    rows = [np.asarray(prompt.ids, np.int64) for _, prompt in asked]
    return compare_with_onnxruntime(bundle, rows, engine, threads, device)


def _asked(bundle: Bundle, examples: Sequence[Example]) -> tuple[list[tuple[Question, Prompt]], Counter[str]]:
    """What the bundle is asked and its prompts, and how often which reason left a conversation without one."""
    spec = bundle.manifest.prompt
    questions = questions_of(examples, pairwise=not isinstance(spec, ChatPrompt))
    prompts = encode_questions(spec, bundle.tokenizer(), examples, questions)
    asked = [(question, p) for question, p in zip(questions, prompts, strict=True) if isinstance(p, Prompt)]
    if not asked:
        raise ExportError(f"{bundle.path} can make no prompt of any conversation: {prompts[0]}")
    return asked, Counter(str(prompt) for prompt in prompts if isinstance(prompt, PromptError))


def _run_bundle(
    bundle: Bundle, rows: Sequence[NDArray[np.int64]], engine: str, threads: int | None, device: str | None
) -> tuple[str, Outputs]:
    """The engine's name and its outputs; the engine is closed before the reference is opened."""
    opened = open_engine(bundle, engine, threads, device)
    return opened.name, run_rows(opened, rows, bundle.manifest.pad_token_id)
