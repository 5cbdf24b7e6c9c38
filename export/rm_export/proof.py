"""What was measured, put into a bundle: parity.json, parity.html, and their place in the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata

from rm_calibration.conversations import Example
from rm_calibration.recipe import Recipe
from rm_export.bundle import replace_file
from rm_export.parity import Parity
from rm_export.publish import publish
from rm_export.report import render_report
from rm_runtime.bundle import Bundle
from rm_runtime.manifest import FileRecord

PARITY_JSON = "parity.json"
PARITY_HTML = "parity.html"

_PACKAGES = (
    "rm-export",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
)


def parity_files(parity: Parity, examples: Sequence[Example], recipe: Recipe | None = None) -> dict[str, bytes]:
    """What is written for a comparison: name -> content. recipe: of an int8 or fp8 bundle."""
    return {PARITY_JSON: parity.to_json().encode(), PARITY_HTML: render_report(parity, examples, recipe).encode()}


def package_versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def publish_parity(bundle: Bundle, parity: Parity, files: Mapping[str, bytes]) -> None:
    """Put the files into the bundle, and the summary into its manifest."""

    def put() -> None:
        for name, content in files.items():
            replace_file(bundle.path / name, content)

    records = {name: FileRecord(len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()}
    publish(
        bundle,
        files,
        put,
        records,
        forgotten=lambda manifest: replace(manifest, parity=None),
        listed=lambda manifest: replace(manifest, parity=parity.summary()),
    )
