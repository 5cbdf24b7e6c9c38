"""bundle.json: what a bundle is, in one frozen record. The JSON schema beside this file is its definition."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from rm_runtime.errors import BundleError
from rm_runtime.prompt_spec import PromptSpec, prompt_from_json, prompt_to_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class FileRecord:
    """One file of a bundle: size in bytes and sha256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class TensorRecord:
    """One graph input or output: ONNX element type in lower case ("int64", "float32") and symbolic shape."""

    name: str
    dtype: str
    shape: tuple[str | int, ...]


@dataclass(frozen=True)
class EnginePlan:
    """A graph compiled by TensorRT. What it was built from and for decides whether it may be used.

    graph: role in Manifest.graphs; graph_sha256: that file's, then. runtime: the Python package that reads the plan,
    "tensorrt" or "tensorrt_rtx"; version: its version. compute_capability: of the GPU ("8.9"), None = any the package
    runs on. stripped: it holds no weights and is refitted from the graph. file: in Manifest.files. profiles: a length
    bucket each: input -> its smallest, usual and largest shape.
    """

    graph: str
    graph_sha256: str
    runtime: str
    version: str
    compute_capability: str | None
    stripped: bool
    file: str
    profiles: tuple[Mapping[str, tuple[tuple[int, ...], ...]], ...]


@dataclass(frozen=True)
class Source:
    """Where the checkpoint came from. `revision` is the commit for a hub id, None for a folder."""

    id: str
    revision: str | None
    config_sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of bundle.json.

    family: which scoring function ("armorm", "grm", "pairrm", "pair-pm", "dpa-rm", "scalar").
    files: every other file of the bundle by its path relative to the bundle, "/"-separated.
    graphs: role -> file; role "plain" is the graph of the contract (input_ids, attention_mask);
        "prefix" is the same with prefix_ids before every row.
    inputs, outputs: the contract of the plain graph.
    pooling: which rule of semantics 0.1 finds the tokens read: FIRST-PAD, LAST-NONPAD, MASK-SUM, PREFIX-TOKENS or
        FIRST-TOKEN.
    pad_token_id: what rows are padded with, on the right.
    prompt: conversation -> ids.
    precision: "fp32", "fp16", "bf16", ...; target: which dialect the graph is written in ("cpu", ...).
    parameters: the family's own constants (objective names, temperature, gate pattern, ...).
    tools: name -> version of what made the bundle.
    parity: summary of parity.json, None until the bundle was verified.
    engines: compiled plans of the graphs.
    """

    family: str
    source: Source
    files: Mapping[str, FileRecord]
    graphs: Mapping[str, str]
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    pooling: str
    pad_token_id: int
    prompt: PromptSpec
    precision: str
    target: str
    opset: int
    architecture: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    tools: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] | None = None
    engines: tuple[EnginePlan, ...] = ()
    format: int = FORMAT_VERSION

    def to_json(self) -> str:
        """bundle.json's text: stable key order, two-space indent, trailing newline."""
        document = {
            "format": self.format,
            "family": self.family,
            "source": vars(self.source),
            "precision": self.precision,
            "recipe": self.recipe,
            "target": self.target,
            "architecture": dict(self.architecture),
            "graphs": dict(self.graphs),
            "graph": {
                "opset": self.opset,
                "inputs": [_tensor_to_json(tensor) for tensor in self.inputs],
                "outputs": [_tensor_to_json(tensor) for tensor in self.outputs],
            },
            "pooling": self.pooling,
            "pad_token_id": self.pad_token_id,
            "prompt": prompt_to_json(self.prompt),
            "parameters": dict(self.parameters),
            "files": {name: vars(record) for name, record in sorted(self.files.items())},
            "tools": dict(self.tools),
            "parity": None if self.parity is None else dict(self.parity),
        }
        if self.engines:
            document["engines"] = [vars(plan) for plan in self.engines]
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "bundle.json") -> Manifest:
        """Parse and check bundle.json. Raises BundleError with one line that names the field and the value."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{where} is not JSON ({error}); export the bundle again") from None
        if not isinstance(document, dict):
            raise BundleError(f"{where} holds a {type(document).__name__}, not an object; export the bundle again")
        version = document.get("format")
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{where} has format version {version!r}, this rm_runtime reads {FORMAT_VERSION}; "
                "install a matching rm-export or export the bundle again"
            )
        _check_schema(document, where)
        graph = document["graph"]
        return cls(
            family=document["family"],
            source=Source(**document["source"]),
            files={name: FileRecord(**record) for name, record in document["files"].items()},
            graphs=document["graphs"],
            inputs=tuple(_tensor_from_json(tensor) for tensor in graph["inputs"]),
            outputs=tuple(_tensor_from_json(tensor) for tensor in graph["outputs"]),
            pooling=document["pooling"],
            pad_token_id=document["pad_token_id"],
            prompt=prompt_from_json(document["prompt"]),
            precision=document["precision"],
            target=document["target"],
            opset=graph["opset"],
            architecture=document["architecture"],
            parameters=document["parameters"],
            recipe=document["recipe"],
            tools=document["tools"],
            parity=document["parity"],
            engines=tuple(_plan_from_json(plan) for plan in document.get("engines", ())),
        )


def manifest_schema() -> dict[str, Any]:
    """The JSON schema of bundle.json (draft 2020-12)."""
    text = resources.files("rm_runtime").joinpath("bundle.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def _check_schema(document: Mapping[str, Any], where: str) -> None:
    from jsonschema import Draft202012Validator

    error = next(iter(sorted(Draft202012Validator(manifest_schema()).iter_errors(document), key=str)), None)
    if error is not None:
        place = "/".join(str(part) for part in error.absolute_path) or "the top level"
        reason = error.message if len(error.message) < 200 else error.message[:200] + "..."
        raise BundleError(f"{where}: at {place}: {reason}; export the bundle again")


def _tensor_to_json(tensor: TensorRecord) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _tensor_from_json(fields: Mapping[str, Any]) -> TensorRecord:
    return TensorRecord(fields["name"], fields["dtype"], tuple(fields["shape"]))


def _plan_from_json(fields: Mapping[str, Any]) -> EnginePlan:
    profiles = tuple(
        {name: tuple(tuple(shape) for shape in shapes) for name, shapes in profile.items()}
        for profile in fields["profiles"]
    )
    return EnginePlan(**{**fields, "profiles": profiles})
