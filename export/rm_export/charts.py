"""Charts as inline SVG, drawn by hand: no script, no font, no network. The page's style colours them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rm_export.parity import LengthBucket

_WIDTH, _HEIGHT = 440, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 44


def scatter(points: Sequence[tuple[float, float]]) -> Markup:
    """Reference score (x) against bundle score (y), both on one scale, with the line of equal scores."""
    values = [value for point in points for value in point]
    low, high, step = _scale(min(values), max(values))

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    ticks = [low + step * index for index in range(round((high - low) / step) + 1)]
    shapes = [f'<line class="equal" x1="{x(low):.1f}" y1="{y(low):.1f}" x2="{x(high):.1f}" y2="{y(high):.1f}"/>']
    shapes += [f'<circle class="point" cx="{x(one):.1f}" cy="{y(other):.1f}" r="3"/>' for one, other in points]
    labels = [_text(x(tick), _HEIGHT - _BOTTOM + 18, _number(tick, step), "middle") for tick in ticks]
    labels += [_text(_LEFT - 8, y(tick) + 4, _number(tick, step), "end") for tick in ticks]
    grid = [_grid(x(tick), _TOP, x(tick), _HEIGHT - _BOTTOM) for tick in ticks]
    grid += [_grid(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick)) for tick in ticks]
    return _svg(
        "Every row's score by the reference and by the bundle",
        [*grid, *shapes, *labels, *_axis_titles("reference score", "bundle score")],
    )


def error_by_length(buckets: Sequence[LengthBucket]) -> Markup:
    """Largest (bar) and mean (dot) score error of rows by their number of ids, on a logarithmic axis."""
    present = [error for bucket in buckets for error in (bucket.max_error, bucket.mean_error) if error > 0]
    bottom = math.floor(math.log10(min(present))) if present else -8
    top = max(bottom + 1, math.ceil(math.log10(max(present)))) if present else 0

    def y(error: float) -> float:
        share = (math.log10(error) - bottom) / (top - bottom) if error > 0 else 0.0
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    slot = (_WIDTH - _LEFT - _RIGHT) / len(buckets)
    shapes = []
    for index, bucket in enumerate(buckets):
        middle, base = _LEFT + slot * (index + 0.5), _HEIGHT - _BOTTOM
        shapes += [
            f'<rect class="bar" x="{middle - slot * 0.32:.1f}" y="{y(bucket.max_error):.1f}" '
            f'width="{slot * 0.64:.1f}" height="{base - y(bucket.max_error):.1f}" rx="2"/>',
            f'<circle class="mean" cx="{middle:.1f}" cy="{y(bucket.mean_error):.1f}" r="4"/>',
            _text(middle, base + 18, _range(bucket.shortest, bucket.longest), "middle"),
        ]
    powers = range(bottom, top + 1, max(1, (top - bottom) // 6))
    grid = [_grid(_LEFT, y(10.0**power), _WIDTH - _RIGHT, y(10.0**power)) for power in powers]
    labels = [_power(_LEFT - 8, y(10.0**power) + 4, power) for power in powers]
    return _svg(
        "Score error by row length",
        [*grid, *shapes, *labels, *_axis_titles("token ids in the row", "score error")],
    )


def bar(share: float) -> Markup:
    """A small horizontal bar for a table cell; share of its width, 0 to 1."""
    width = 100 * min(1.0, max(0.0, share))
    return Markup(
        '<svg class="cell" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="8"/>'
        f'<rect class="bar" width="{width:.2f}" height="8"/></svg>'
    )


def _scale(low: float, high: float) -> tuple[float, float, float]:
    """A range of round numbers around [low, high], and the step of its ticks: 1, 2 or 5 times 10^k."""
    if high <= low:
        low, high = low - 1.0, high + 1.0
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    return math.floor(low / step) * step, math.ceil(high / step) * step, step


def _number(value: float, step: float) -> str:
    decimals = max(0, -math.floor(math.log10(step)))
    return f"{value:.{decimals}f}".replace("-", "−")


def _range(shortest: int, longest: int) -> str:
    return str(shortest) if shortest == longest else f"{shortest}–{longest}"


def _power(x: float, y: float, power: int) -> str:
    exponent = str(power).replace("-", "−")
    return _text(x, y, f'10<tspan dy="-5" font-size="8">{exponent}</tspan>', "end")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _axis_titles(x: str, y: str) -> list[str]:
    middle = _TOP + (_HEIGHT - _TOP - _BOTTOM) / 2
    return [
        _text(_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2, _HEIGHT - 6, x, "middle"),
        f'<g transform="rotate(-90 13 {middle:.1f})">{_text(13, middle, y, "middle")}</g>',
    ]


def _svg(title: str, shapes: Iterable[str]) -> Markup:
    """Only numbers and our own words get into `shapes`; nothing of a checkpoint or a conversation."""
    return Markup(
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}">'
        f"<title>{title}</title>{''.join(shapes)}</svg>"
    )
