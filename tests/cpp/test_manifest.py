"""The C++ reader of bundle.json refuses whatever the JSON schema refuses, in one line that names the place."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import checkpoints
import cpp_builds
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_runtime.errors import BundleError
from rm_runtime.manifest import Manifest

FAMILIES = {"armorm": checkpoints.armorm, "pair-pm": checkpoints.pair_pm, "pairrm": checkpoints.pairrm}
VALUES: tuple[Any, ...] = (None, True, -1, 1.5, "", "../x", "surprise", [], ["x"], {}, {"surprise": 1})
FREE = ("architecture", "parameters", "tools", "parity", "recipe", "variables", "profiles")
"""Whose contents are anybody's."""


@pytest.fixture(scope="module", params=FAMILIES)
def manifest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bundle")
    bundle = export_checkpoint(open_checkpoint(FAMILIES[request.param](folder / "checkpoint")), folder / "bundle")
    document: dict[str, Any] = json.loads((Path(bundle) / "bundle.json").read_text())
    return document


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands; of an array, its first item."""
    if path:
        yield path
    if path and path[-1] in FREE:
        return
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def changed(manifest: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    document = copy.deepcopy(manifest)
    holder: Any = document
    for key in path[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return document


def outcomes(documents: list[str]) -> list[str]:
    done = subprocess.run(
        [cpp_builds.sanitized() / "read_manifests"],
        input="\n".join(documents) + "\n",
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **cpp_builds.SANITIZERS},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def in_python(document: str) -> str:
    try:
        Manifest.from_json(document)
    except BundleError as error:
        return str(error)
    return "read"


def test_every_wrong_value_that_python_refuses_is_refused(manifest: dict[str, Any]) -> None:
    mutants = [changed(manifest, path, value) for path in places(manifest) for value in (..., *VALUES)]
    mutants += [{**manifest, "surprise": 1}, {**manifest, "engines": [{}]}, {**manifest, "format": True}]
    documents = [json.dumps(mutant) for mutant in [manifest, *mutants]]
    got, expected = outcomes(documents), [in_python(document) for document in documents]
    assert len(got) == len(expected)
    assert got[0] == expected[0] == "read"
    missed = [document for document, one, other in zip(documents, got, expected, strict=True) if one == "read" != other]
    assert not missed, f"{len(missed)} of {len(documents)}, e.g. {missed[0][:500]}"
    assert sum(outcome == "read" for outcome in got) > 10  # what may be null, other names, other numbers


def test_a_refusal_names_the_place(manifest: dict[str, Any]) -> None:
    (outcome,) = outcomes([json.dumps(changed(manifest, ("graph", "inputs", 0, "dtype"), "float8"))])
    assert outcome == "bundle.json: at graph/inputs/0/dtype: 'float8' is not known; export the bundle again"
