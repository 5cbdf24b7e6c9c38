"""checkpoint -> bundle: the family plans, the graph is written and lowered, the weights stream into place."""

from __future__ import annotations

import platform
import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import onnx_ir as ir

from rm_calibration.formats import FORMATS
from rm_export import families
from rm_export.build import OPSET, build_model
from rm_export.bundle import (
    Progress,
    Silent,
    check_replaceable,
    staged_folder,
    write_file,
    write_graph,
    write_second_graph,
)
from rm_export.checkpoint import Checkpoint
from rm_export.families import Plan
from rm_export.judges import Judges
from rm_export.lowering import Target, lower, target_for
from rm_export.measure import measure
from rm_export.options import Options
from rm_export.proof import package_versions, parity_files
from rm_export.quantisation import RECIPE_NAME, WEIGHT_BITS, Quantisation, Written, quantise, write_within_budget
from rm_export.speed import compare_layers
from rm_export.template_pieces import with_pieces
from rm_runtime.bundle import MANIFEST_NAME, TOKENIZER_NAME
from rm_runtime.manifest import FileRecord, Manifest, Source, TensorRecord

GRAPH_NAME = "model.onnx"
PREFIX_GRAPH_NAME = "model.prefix.onnx"
"""The same scores for rows that begin alike: their common prefix is computed once."""


def export_checkpoint(
    checkpoint: Checkpoint,
    output: Path,
    *,
    family: str = "auto",
    precision: str = "fp32",
    target: str = "cpu",
    options: Options | None = None,
    quantisation: Quantisation | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the checkpoint as a bundle folder and return its path.

    family: a name, or "auto" to recognise it. precision: "fp32", "fp16", "bf16", "int8", "fp8", "w8", "w4". target:
    "cpu", "cuda", "tensorrt". quantisation: how to calibrate and judge; None takes the built-in conversations.
    A quantised bundle is compared with its float graph on held-out conversations; parity.json and parity.html tell.
    Raises CheckpointError if the checkpoint is not what it should be, ExportError if the bundle cannot be made.
    """
    dialect = target_for(target, precision)
    check_replaceable(output, force)
    chosen = families.recognise(checkpoint) if family == "auto" else families.family(family)
    plan = chosen.plan(checkpoint, options or Options())
    progress = progress or Silent()

    def build(shared_prefix: bool = False) -> ir.Model:
        return build_model(chosen.plan(checkpoint, options or Options()), checkpoint.id, shared_prefix)

    choices, quantised = quantisation or Quantisation(), None
    work = output.absolute().with_name(f".{output.absolute().name}.calibration")
    if precision in (*FORMATS, *WEIGHT_BITS):
        quantised = quantise(build, plan, chosen.NAME, checkpoint, precision, choices, work, progress)
    with staged_folder(output, force) as folder:
        written = None
        if quantised is None:
            files = write_graph(lower(build(), precision, dialect), folder, GRAPH_NAME, progress)
        else:
            written = write_within_budget(quantised, build, folder, GRAPH_NAME, dialect, choices.options, progress)
            files, recipe = written.files, written.quantised.recipe
            if recipe is not None:
                files[RECIPE_NAME] = write_file(folder, RECIPE_NAME, recipe.to_yaml().encode())
        if plan.causal and dialect.shared_prefix:
            final, second = written.quantised if written else None, build(shared_prefix=True)
            lowered = final.graph(second, dialect) if final else lower(second, precision, dialect)
            files |= write_second_graph(lowered, folder, PREFIX_GRAPH_NAME, GRAPH_NAME)
        files[TOKENIZER_NAME] = write_file(folder, TOKENIZER_NAME, plan.tokenizer_json.encode())
        manifest = _manifest(checkpoint, chosen.NAME, plan, precision, dialect, files)
        if written is not None and written.quantised.judges is not None:
            manifest = _proved(manifest, written, written.quantised.judges, folder)
            if "onnxruntime" in dialect.engines:  # which is what times it
                row = max(written.quantised.judges.asked.rows, key=len)
                progress.note(str(compare_layers(build(), folder / GRAPH_NAME, row, choices.options.threads)))
        write_file(folder, MANIFEST_NAME, manifest.to_json().encode())
    shutil.rmtree(work, ignore_errors=True)
    return output


def _proved(manifest: Manifest, written: Written, judges: Judges, folder: Path) -> Manifest:
    """Write into the folder how the quantised graph's decisions compare with the float one's."""
    assert written.outputs is not None
    parity = measure(
        manifest,
        list(zip(judges.asked.questions, judges.asked.prompts, strict=True)),
        judges.outputs,
        written.outputs,
        engine="onnxruntime, one layer at a time",
        versions=package_versions(),
        examples=len({question.line for question in judges.asked.questions}),
        not_rendered={},
        reference="the float32 graph of the same checkpoint, on conversations that calibration never saw",
    )
    files = dict(manifest.files)
    for name, content in parity_files(parity, judges.asked.examples, written.quantised.recipe).items():
        files[name] = write_file(folder, name, content)
    return replace(manifest, files=files, parity=parity.summary())


def _manifest(
    checkpoint: Checkpoint,
    family: str,
    plan: Plan,
    precision: str,
    target: Target,
    files: dict[str, FileRecord],
) -> Manifest:
    rows: tuple[str | int, ...] = ("batch", "sequence")
    return Manifest(
        family=family,
        source=Source(checkpoint.id, checkpoint.revision, checkpoint.config_sha256),
        files=files,
        graphs={"plain": GRAPH_NAME} | ({"prefix": PREFIX_GRAPH_NAME} if PREFIX_GRAPH_NAME in files else {}),
        inputs=(TensorRecord("input_ids", "int64", rows), TensorRecord("attention_mask", "int64", rows)),
        outputs=tuple(TensorRecord(name, "float32", tuple(shape)) for name, shape in plan.outputs.items()),
        pooling=plan.pooling,
        pad_token_id=plan.pad_token_id,
        prompt=with_pieces(plan.prompt),
        precision=precision,
        target=target.name,
        opset=OPSET,
        recipe=RECIPE_NAME if RECIPE_NAME in files else None,
        architecture=plan.architecture,
        parameters=plan.parameters,
        tools={
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("rm-export", "onnx-ir", "onnxscript", "tokenizers")},
        },
    )
