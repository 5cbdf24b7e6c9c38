"""A report as a drawing: one panel a figure, one bar a contender. Plain SVG, no script, no font, no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rm_runtime.errors import RequestError

SUFFIXES = (".svg", ".html")

_WIDTH, _NAME, _VALUE = 720, 150, 110
_BAR, _TITLE, _GAP, _TOP = 22, 30, 18, 64

_STYLE = """
svg{background:#fff;font:13px system-ui,sans-serif}
text{fill:#222}.title{font-weight:600}.note{fill:#666;font-size:12px}
.bar{fill:#2f6f9f}.reference{fill:#a8a8a8}.tail{fill:none;stroke:#c2571a;stroke-width:2}
"""

Contender = Mapping[str, Any]
Figure = Callable[[Contender], float | None]


def _of(*place: str, scale: float = 1.0) -> Figure:
    """The figure at that place of a contender, None if it has none."""

    def figure(contender: Contender) -> float | None:
        value: Any = contender
        for key in place:
            value = value.get(key) if isinstance(value, Mapping) else None
        return None if value is None else float(value) * scale

    return figure


PANELS: tuple[tuple[str, Figure, Figure | None], ...] = (
    (
        "single stream: latency in ms, p50 (bar) and p99 (mark); less is better",
        _of("single_stream", "p50_ms"),
        _of("single_stream", "p99_ms"),
    ),
    ("offline: tokens per second; more is better", _of("offline", "tokens_per_second"), None),
    ("server: conversations per second within the bound; more is better", _of("server", "goodput"), None),
    ("load time in seconds; less is better", _of("load_seconds"), None),
    ("peak memory in GiB; less is better", _of("peak_bytes", scale=2**-30), None),
)
"""Title, bar, and the mark beyond it."""


def write_plot(report: Mapping[str, Any], path: Path) -> None:
    """Write the drawing as .svg, or inside a page as .html. Raises RequestError for another suffix."""
    check_suffix(path)
    drawing = svg(report)
    if path.suffix == ".html":
        title = escape(measured(report))
        drawing = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n{drawing}</html>\n'
    path.write_text(drawing, encoding="utf-8")


def measured(report: Mapping[str, Any]) -> str:
    """The bundle's folder, or the servers."""
    return str(report["bundle"]["path"]) if report["bundle"] else ", ".join(report["settings"]["urls"])


def check_suffix(path: Path) -> None:
    """Raises RequestError unless the name ends in one of SUFFIXES."""
    if path.suffix not in SUFFIXES:
        raise RequestError(f"{path}: a plot's name ends in {' or '.join(SUFFIXES)}")


def svg(report: Mapping[str, Any]) -> str:
    """The drawing; contenders that failed and panels without figures are left out."""
    contenders = [contender for contender in report["contenders"] if not contender["failure"]]
    shapes: list[str] = []
    top = _TOP
    for title, figure, mark in PANELS:
        values = [figure(contender) for contender in contenders]
        if any(value is not None for value in values):
            marks = [mark(contender) if mark else None for contender in contenders]
            shapes += [_text(12, top + 16, title, "title"), *_bars(contenders, values, marks, top + _TITLE)]
            top += _TITLE + _BAR * len(contenders) + _GAP
    bundle, machine = report["bundle"], report["machine"]
    head = f"{measured(report)}: {bundle['family']}, {bundle['precision']}" if bundle else measured(report)
    note = f"{machine['cpu']}, {machine['cores']['usable']} cores; {report['rows']['count']} rows"
    heading = [_text(12, 26, head, "title"), _text(12, 46, note, "note")]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" role="img">'
        f"<style>{_STYLE}</style><title>{escape(head)}</title>\n" + "\n".join([*heading, *shapes]) + "\n</svg>\n"
    )


def _bars(
    contenders: Sequence[Contender], values: Sequence[float | None], marks: Sequence[float | None], top: float
) -> Iterator[str]:
    largest = max((value for value in (*values, *marks) if value), default=1.0)
    unit = (_WIDTH - _NAME - _VALUE) / largest
    for row, (contender, value, mark) in enumerate(zip(contenders, values, marks, strict=True)):
        y = top + row * _BAR
        yield _text(12, y + 14, contender["name"], "name")
        if value is None:
            continue
        kind = "reference" if contender["reference"] else "bar"
        yield f'<rect class="{kind}" x="{_NAME}" y="{y}" width="{value * unit:.1f}" height="{_BAR - 5}"/>'
        figure = _number(value)
        if mark is not None:
            x = _NAME + mark * unit
            yield f'<path class="tail" d="M{x:.1f} {y}v{_BAR - 5}"/>'
            figure += f", {_number(mark)}"
        yield _text(_NAME + max(value, mark or 0.0) * unit + 6, y + 14, figure, "figure")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
