"""checkpoint -> bundle: the family plans, the graph is written and lowered, the weights stream into place."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import onnx_ir as ir

from rm_export import families
from rm_export.build import OPSET, build_model
from rm_export.bundle import Progress, Silent, check_replaceable, staged_folder, write_file, write_graph
from rm_export.checkpoint import Checkpoint
from rm_export.families import Plan
from rm_export.lowering import Target, lower, target_for
from rm_export.options import Options
from rm_export.quantisation import RECIPE_NAME, WEIGHT_BITS, Quantisation, prove, quantise
from rm_export.speed import TOKENS, compare_layers
from rm_runtime.bundle import MANIFEST_NAME, TOKENIZER_NAME
from rm_runtime.manifest import FileRecord, Manifest, Source, TensorRecord

GRAPH_NAME = "model.onnx"


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

    family: a name, or "auto" to recognise it. precision: "fp32", "fp16", "bf16", "int8", "w8", "w4". target: "cpu",
    "cuda", "tensorrt". quantisation: how to calibrate and judge; None takes the built-in conversations.
    A quantised bundle is compared with its float graph on held-out conversations; parity.json and parity.html tell.
    Raises CheckpointError if the checkpoint is not what it should be, ExportError if the bundle cannot be made.
    """
    dialect = target_for(target, precision)
    check_replaceable(output, force)
    chosen = families.recognise(checkpoint) if family == "auto" else families.family(family)
    plan = chosen.plan(checkpoint, options or Options())
    progress = progress or Silent()

    def build() -> ir.Model:
        return build_model(chosen.plan(checkpoint, options or Options()), checkpoint.id)

    choices, quantised = quantisation or Quantisation(), None
    if precision in ("int8", *WEIGHT_BITS):
        quantised = quantise(build, plan, chosen.NAME, checkpoint, precision, choices, progress)
    with staged_folder(output, force) as folder:
        graph = build() if quantised is None else quantised.graph(build())
        files = write_graph(lower(graph, precision, dialect), folder, GRAPH_NAME, progress)
        files[TOKENIZER_NAME] = write_file(folder, TOKENIZER_NAME, plan.tokenizer_json.encode())
        if quantised is not None and quantised.recipe is not None:
            files[RECIPE_NAME] = write_file(folder, RECIPE_NAME, quantised.recipe.to_yaml().encode())
        manifest = _manifest(checkpoint, chosen.NAME, plan, precision, dialect, files)
        write_file(folder, MANIFEST_NAME, manifest.to_json().encode())
    if quantised is not None and quantised.judges is not None:
        prove(output, quantised.judges)
        ids = max(quantised.judges.rows, key=len)[:TOKENS]
        progress.note(str(compare_layers(build(), quantised.graph(build()), ids, choices.options.threads)))
    return output


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
        graphs={"plain": GRAPH_NAME},
        inputs=(TensorRecord("input_ids", "int64", rows), TensorRecord("attention_mask", "int64", rows)),
        outputs=tuple(TensorRecord(name, "float32", tuple(shape)) for name, shape in plan.outputs.items()),
        pooling=plan.pooling,
        pad_token_id=plan.pad_token_id,
        prompt=plan.prompt,
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
