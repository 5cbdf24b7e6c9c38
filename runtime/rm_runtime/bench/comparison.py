"""Two reports -> ratios, and what else differs between them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rm_runtime.bench.report_schema import report_fault
from rm_runtime.errors import RequestError

FIGURES = (
    ("p50 latency", ("single_stream", "p50_ms"), True),
    ("p90 latency", ("single_stream", "p90_ms"), True),
    ("p99 latency", ("single_stream", "p99_ms"), True),
    ("offline tokens/s", ("offline", "tokens_per_second"), False),
    ("server goodput", ("server", "goodput"), False),
    ("load time", ("load_seconds",), True),
    ("peak memory", ("peak_bytes",), True),
)
"""What is compared: its name, where it stands in a contender, whether less is better."""

_SETTINGS_BESIDE = ("engines", "versus", "checkpoint", "scenarios", "urls", "model")
"""Settings that say which figures there are, not how they were measured."""


def read_report(path: Path) -> dict[str, Any]:
    """Read what `rm-runtime bench --json` wrote. Raises RequestError, in one line, for anything else."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON ({error}); pass what rm-runtime bench --json wrote") from None
    fault = report_fault(document)
    if fault is not None:
        raise RequestError(f"{path} is no report of rm-runtime bench: {fault}")
    report: dict[str, Any] = document
    return report


def comparison_lines(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """For each contender of both, how many times better B's figures are than A's; first, what makes that unfair.

    Contenders are matched by name; if each report has one that ran, these two are compared whatever their names.
    """
    yield from _differences(a, b)
    for one, other in _matched(a, b):
        names = one["name"] if one["name"] == other["name"] else f"{one['name']} -> {other['name']}"
        yield f"{names}: B over A, above 1 is better"
        for label, place, less_is_better in FIGURES:
            before, after = _figure(one, place), _figure(other, place)
            if before and after:
                ratio = before / after if less_is_better else after / before
                yield f"  {label:<17} {ratio:6.2f}x   {_number(place, before)} -> {_number(place, after)}"


def _matched(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Pairs of contenders that ran. Raises RequestError if there is none."""
    ran_a, ran_b = ({c["name"]: c for c in report["contenders"] if not c["failure"]} for report in (a, b))
    pairs = [(contender, ran_b[name]) for name, contender in ran_a.items() if name in ran_b]
    if not pairs and len(ran_a) == len(ran_b) == 1:
        pairs = list(zip(ran_a.values(), ran_b.values(), strict=True))
    if not pairs:
        raise RequestError(f"no contender ran in both: {', '.join(ran_a)} in A, {', '.join(ran_b)} in B")
    return pairs


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    if a["rows"]["sha256"] != b["rows"]["sha256"]:
        yield "the rows differ: latencies and conversations are of other lengths"
    for part, keys in (
        ("machine", ("cpu", "flags", "cores")),
        ("settings", sorted({*a["settings"], *b["settings"]} - set(_SETTINGS_BESIDE))),
        ("bundle", ("sha256", "precision")),
    ):
        for key in keys:
            before, after = ((report[part] or {}).get(key) for report in (a, b))
            if before != after:
                yield f"{part}, {key}: {_short(before)} in A, {_short(after)} in B"


def _figure(contender: Mapping[str, Any], place: tuple[str, ...]) -> float | None:
    value: Any = contender
    for key in place:
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _number(place: tuple[str, ...], value: float) -> str:
    return (
        f"{value / 2**30:.2f} GiB" if place == ("peak_bytes",) else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
