"""Damaged and hostile bundles: Python and C++ refuse each with a one-line reason before anything of it is used."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import checkpoints
import cpp_builds
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_runtime import BundleError, EngineError, RewardModelError, load


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    return export_checkpoint(open_checkpoint(checkpoints.scalar(folder / "checkpoint")), folder / "bundle")


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


Refused = Callable[..., None]


@pytest.fixture(params=["python", "c++"])
def refused(request: pytest.FixtureRequest) -> Refused:
    """Asserts that a bundle is refused with one line that matches a pattern; called (bundle, reason, verify=False)."""
    return refused_by_python if request.param == "python" else refused_by_cpp


def refused_by_python(
    bundle: Path, reason: str, verify: bool = False, error: type[RewardModelError] = BundleError
) -> None:
    with pytest.raises(error, match=reason) as caught:
        load(bundle, verify=verify)
    assert "\n" not in str(caught.value)


def refused_by_cpp(bundle: Path, reason: str, verify: bool = False, **_: object) -> None:
    done = cpp_builds.score(bundle, b"", *(["--verify"] if verify else []))
    assert done.returncode == 1
    assert done.stdout == b""
    line = done.stderr.decode()
    assert line.count("\n") == 1
    assert re.search(reason, line), line


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def forge_records(bundle: Path) -> None:
    """What an attacker does: make sizes and hashes agree with the changed files."""

    def recompute(manifest: dict[str, Any]) -> None:
        for name in manifest["files"]:
            content = (bundle / name).read_bytes()
            manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    edit_manifest(bundle, recompute)


def test_the_pristine_bundle_loads(bundle: Path) -> None:
    load(bundle, verify=True)


def test_the_pristine_bundle_loads_in_cpp(bundle: Path) -> None:
    assert cpp_builds.score(bundle, b"", "--verify").returncode == 0


def test_truncated_weights_are_refused(bundle: Path, refused: Refused) -> None:
    with (bundle / "model.onnx.data").open("r+b") as file:
        file.truncate(1000)
    refused(bundle, r"model\.onnx\.data has 1000 bytes, its manifest says \d+")


def test_a_flipped_bit_is_refused_when_hashes_are_checked(bundle: Path, refused: Refused) -> None:
    path = bundle / "model.onnx.data"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(bundle, r"model\.onnx\.data does not match its sha256", verify=True)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_missing_file_is_refused(bundle: Path, name: str, refused: Refused) -> None:
    (bundle / name).unlink()
    refused(bundle, f"{name} is missing")


def test_a_missing_manifest_is_refused(bundle: Path, refused: Refused) -> None:
    (bundle / "bundle.json").unlink()
    refused(bundle, r"holds no bundle\.json")


@pytest.mark.parametrize(
    "path",
    ["../secret", "/etc/passwd", "a/../../secret", "engines/./x", "..", "C:\\secret", "a//b", "a\0b", ""],
)
def test_a_path_that_leaves_the_bundle_is_refused(bundle: Path, path: str, refused: Refused) -> None:
    (bundle.parent / "secret").write_bytes(b"")
    record = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    edit_manifest(bundle, lambda manifest: manifest["files"].update({path: record}))
    refused(bundle, r"bundle\.json: at files")


def test_a_graph_outside_the_bundle_is_refused(bundle: Path, refused: Refused) -> None:
    edit_manifest(bundle, lambda manifest: manifest["graphs"].update(plain="../model.onnx"))
    refused(bundle, r"bundle\.json: at graphs")


def test_a_graph_that_the_manifest_does_not_list_is_refused(bundle: Path, refused: Refused) -> None:
    edit_manifest(bundle, lambda manifest: manifest["files"].pop("model.onnx"))
    refused(bundle, r"does not list its own model\.onnx")


@pytest.mark.parametrize("name", ["model.onnx.data", "bundle.json", "tokenizer.json"])
def test_a_symbolic_link_is_refused(bundle: Path, name: str, refused: Refused) -> None:
    moved = bundle.parent / "elsewhere"
    shutil.move(bundle / name, moved)
    (bundle / name).symlink_to(moved)
    refused(bundle, "is a symbolic link")


def test_a_fifo_in_place_of_a_file_is_refused_without_hanging(bundle: Path, refused: Refused) -> None:
    (bundle / "model.onnx").unlink()
    os.mkfifo(bundle / "model.onnx")
    refused(bundle, "is not a plain file")


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5])
def test_an_unknown_format_version_is_refused(bundle: Path, version: object, refused: Refused) -> None:
    edit_manifest(bundle, lambda manifest: manifest.update(format=version))
    refused(bundle, "format version")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}', "[" * 100_000, "\xff\xfe", '{"format": NaN}'])
def test_a_manifest_that_is_not_one_is_refused(bundle: Path, text: str, refused: Refused) -> None:
    (bundle / "bundle.json").write_bytes(text.encode("latin-1"))
    refused(bundle, r"bundle\.json")


def test_a_manifest_of_gigabytes_is_refused_unread(bundle: Path, refused: Refused) -> None:
    os.truncate(bundle / "bundle.json", 8 << 30)
    refused(bundle, "no manifest is")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("family", "pickle"),
        ("pad_token_id", -1),
        ("prompt", {"kind": "exec"}),
        ("files", []),
        ("precision", "fp7"),
    ],
)
def test_a_manifest_field_of_a_wrong_value_is_refused_by_name(
    bundle: Path, key: str, value: object, refused: Refused
) -> None:
    edit_manifest(bundle, lambda manifest: manifest.update({key: value}))
    refused(bundle, f"{key}|prompt kind")


def test_nan_weights_are_refused_even_with_forged_hashes(bundle: Path, refused: Refused) -> None:
    model = ir.load(bundle / "model.onnx")
    tensor = model.graph.initializers["model.layers.0.mlp.down_proj.weight"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    with (bundle / "model.onnx.data").open("r+b") as file:
        file.seek(tensor.offset or 0)
        file.write(np.full(tensor.size, np.nan, np.float32).tobytes())
    forge_records(bundle)
    refused(bundle, "cannot score even a plain chat: .*not finite", verify=True)


def test_external_data_outside_the_bundle_is_refused_even_with_forged_hashes(bundle: Path, refused: Refused) -> None:
    shutil.copy(bundle / "model.onnx.data", bundle.parent / "outside.data")
    content = (bundle / "model.onnx").read_bytes()
    forged = content.replace(b"model.onnx.data", b"../outside.data")
    assert forged != content
    (bundle / "model.onnx").write_bytes(forged)
    forge_records(bundle)
    refused(bundle, r"cannot load .*model\.onnx", verify=True, error=EngineError)


def test_a_garbled_tokenizer_is_refused(bundle: Path, refused: Refused) -> None:
    (bundle / "tokenizer.json").write_text('{"model": {}}')
    forge_records(bundle)
    refused(bundle, r"tokenizer\.json cannot be read")
