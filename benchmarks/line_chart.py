"""Lines over a logarithmic axis as a plain SVG: one panel a question, one line a contender."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#2f6f9f", "#c2571a", "#3f8f4f", "#8a5aa8", "#a8a8a8")
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _LEGEND = 760, 300, 70, 44, 46, 200
_STYLE = "svg{background:#fff;font:12px system-ui,sans-serif}text{fill:#222}.title{font-weight:600}.grid{stroke:#ddd}"


@dataclass(frozen=True)
class Panel:
    """lines: name -> points (x > 0, y >= 0). The y axis begins at 0, so that a slope is what it seems."""

    title: str
    x_title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


def svg(panels: Sequence[Panel]) -> str:
    """The panels, one below the other."""
    drawn = [f'<g transform="translate(0 {_HEIGHT * place})">{_panel(one)}</g>' for place, one in enumerate(panels)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT * len(panels)}" width="{_WIDTH}" '
        f'role="img"><style>{_STYLE}</style>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def _panel(panel: Panel) -> str:
    points = [point for line in panel.lines.values() for point in line]
    low, high = math.log2(min(x for x, _ in points)), math.log2(max(x for x, _ in points))
    step = _step(max(y for _, y in points))
    top = step * math.ceil(max(y for _, y in points) / step)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = _LEFT + (math.log2(point[0]) - low) / max(high - low, 1.0) * (_WIDTH - _LEFT - _LEGEND)
        return x, _HEIGHT - _BOTTOM - point[1] / top * (_HEIGHT - _TOP - _BOTTOM)

    shapes = [f'<text class="title" x="12" y="24">{escape(panel.title)}</text>']
    for tick in range(round(top / step) + 1):
        x, y = place((2**low, tick * step))
        shapes.append(f'<path class="grid" d="M{x:.1f} {y:.1f}H{_WIDTH - _LEGEND}"/>')
        shapes.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick * step:,.0f}</text>')
    for power in range(math.ceil(low), math.floor(high) + 1):
        x, y = place((2.0**power, 0))
        shapes.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{2**power:,}</text>')
    middle = _LEFT + (_WIDTH - _LEFT - _LEGEND) / 2
    shapes.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(panel.x_title)}</text>')
    for number, (name, line) in enumerate(panel.lines.items()):
        shapes += _line(name, [place(point) for point in line], number)
    return "".join(shapes)


def _line(name: str, places: Sequence[tuple[float, float]], number: int) -> Iterator[str]:
    colour = COLOURS[number % len(COLOURS)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places)
    x, y = _WIDTH - _LEGEND + 14, _TOP + 18 * number
    yield f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colour}"/>'
    yield f'<text x="{x + 16}" y="{y}">{escape(name)}</text>'


def _step(highest: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are at most six ticks."""
    power = 10.0 ** math.floor(math.log10(highest / 5))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= highest / 5)
