"""The JSON schema of a report, and what is wrong with a document that should be one."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def report_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of what rm_runtime.bench.measure.bench returns."""
    text = resources.files("rm_runtime.bench").joinpath("report.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def report_fault(document: object) -> str | None:
    """Where and why the document is no report, None if it is one."""
    from jsonschema import Draft202012Validator

    error = next(iter(sorted(Draft202012Validator(report_schema()).iter_errors(document), key=str)), None)
    if error is None:
        return None
    place = "/".join(str(part) for part in error.absolute_path) or "the top level"
    return f"at {place}: {error.message[:200]}"
