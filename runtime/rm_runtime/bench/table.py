"""A report as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_GIB = 2**30

BUSY = 0.5
"""Load a core before a benchmark began from which its reader is warned."""


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What was measured, a table of contenders, and which engine "auto" takes."""
    bundle, machine, rows = report["bundle"], report["machine"], report["rows"]
    if bundle:
        yield f"{bundle['path']}: {bundle['family']}, {bundle['precision']} for {bundle['target']}"
    yield f"{machine['cpu']}, {machine['cores']['usable']} cores, {' '.join(machine['flags'])}"
    yield (
        f"{rows['count']} rows of {rows['shortest']} to {rows['longest']} {_unit(rows)} (median {rows['median']}), "
        f"seed {report['settings']['seed']}"
    )
    load, cores = machine["load_average"], machine["cores"]["machine"]
    if load is not None and cores is not None and load > BUSY * cores:
        yield f"the machine was busy (load {load:.1f} on {cores} cores): times are too long, ratios rough"
    if report["settings"]["one_at_a_time"]:
        yield "contenders were measured one after the other, not in turns: their ratios want a quiet machine"
    yield ""
    cells = [_HEADER, *(_cells(contender) for contender in report["contenders"] if not contender["failure"])]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADER))]
    for row in cells:
        name, *figures = row
        columns = (figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True))
        yield "  ".join([name.ljust(widths[0]), *columns]).rstrip()
    yield ""
    for contender in report["contenders"]:
        if contender["failure"]:
            yield f"not measured: {contender['failure']}"
    bound = report["settings"]["p99_ms"]
    for contender in report["contenders"]:
        served = contender.get("server")
        if served and not served["met"]:
            yield (
                f"server: {contender['name']} keeps 99 % within {bound:g} ms at no rate tried "
                f"({served['p99_ms']:.0f} ms at {served['rate']:.2f}/s)"
            )
    if report["settings"].get("urls"):
        yield "times of a server are those of its clients, with tokenisation and network; its memory is not known"
    if report["auto"]:
        yield f'engine="auto" takes {report["auto"]} for this bundle'


def _unit(rows: Mapping[str, Any]) -> str:
    each = rows["origin"].get("ids_per_word")
    return f"ids, estimated at {each:g} a word," if each else "ids"


_HEADER = ["contender", "p50 ms", "p90 ms", "p99 ms", "tokens/s", "chats/s", "served/s", "load s", "peak GiB"]


def _cells(contender: Mapping[str, Any]) -> list[str]:
    stream, offline, served = (contender.get(name) for name in ("single_stream", "offline", "server"))
    peak = contender["peak_bytes"]
    return [
        contender["name"],
        *(f"{stream[key]:.1f}" if stream else "" for key in ("p50_ms", "p90_ms", "p99_ms")),
        f"{offline['tokens_per_second']:.0f}" if offline else "",
        f"{offline['conversations_per_second']:.2f}" if offline else "",
        f"{served['goodput']:.2f}" if served else "",
        "" if contender["load_seconds"] is None else f"{contender['load_seconds']:.1f}",
        f"{peak / _GIB:.2f}" if peak else "",
    ]
