"""What was measured, put into a bundle: parity.json, parity.html, and their place in the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata

from rm_calibration.conversations import Example
from rm_calibration.recipe import Recipe
from rm_export.bundle import replace_file
from rm_export.errors import ExportError
from rm_export.parity import Parity
from rm_export.report import render_report
from rm_runtime.bundle import MANIFEST_NAME, Bundle, open_bundle
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
    """What is written for a comparison: name -> content. recipe: of an int8 bundle."""
    return {PARITY_JSON: parity.to_json().encode(), PARITY_HTML: render_report(parity, examples, recipe).encode()}


def package_versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def publish(bundle: Bundle, parity: Parity, files: Mapping[str, bytes]) -> None:
    """Put the files into the bundle and list them; the folder is a whole bundle at every instant.

    A listed file must have its listed size, so the manifest first forgets the files that change, then they
    are replaced, then it lists them again. It is read anew: others may have added to the bundle meanwhile.
    """
    manifest = open_bundle(bundle.path).manifest
    others = {name: record for name, record in manifest.files.items() if name not in files}
    verified = {name: record for name, record in bundle.manifest.files.items() if name not in files}
    if any(others.get(name) != record for name, record in verified.items()):
        raise ExportError(f"{bundle.path} was replaced while it was verified; verify it again")
    path = bundle.path / MANIFEST_NAME
    replace_file(path, replace(manifest, files=others, parity=None).to_json().encode())
    for name, content in files.items():
        replace_file(bundle.path / name, content)
    records = {name: FileRecord(len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()}
    listed = replace(manifest, files={**others, **records}, parity=parity.summary())
    replace_file(path, listed.to_json().encode())
