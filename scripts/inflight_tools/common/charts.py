"""Line charts as SVG text, for reports that have to open anywhere without a network or a plotting library. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 34, 46
_COLOURS = ("#2b6cb0", "#c05621", "#6b46c1", "#2f855a", "#b83280")
_TICKS = 5


@dataclass(frozen=True, slots=True)
class Series:
    """One line: a value per place on the x axis (NaN: none), with half the width of its error bar where known."""

    name: str
    values: Sequence[float]
    errors: Sequence[float | None] = ()
    dashed: bool = False


def line_chart(title: str, x_title: str, labels: Sequence[str], series: Sequence[Series]) -> str:
    """An <svg> element; the places on the x axis are evenly spaced, the y axis begins at 0."""
    top = _nice_top(max((_reach(one, place) for one in series for place in range(len(labels))), default=0.0))
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg" font-size="11" font-family="sans-serif">',
        f'<text x="{_LEFT}" y="16" font-size="13" font-weight="bold" fill="currentColor">{escape(title)}</text>',
    ]
    for tick in range(_TICKS + 1):
        value = top * tick / _TICKS
        y = _y(value, top)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="currentColor">{_short(value)}</text>'
        )
    for place, label in enumerate(labels):
        x = _x(place, len(labels))
        y = _HEIGHT - _BOTTOM + 16
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle" fill="currentColor">{escape(label)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle" fill="currentColor">{escape(x_title)}</text>'
    )
    for number, one in enumerate(series):
        parts += _line(one, _COLOURS[number % len(_COLOURS)], top, len(labels))
        x = _WIDTH - _RIGHT - 92 * (len(series) - number)
        parts.append(f'<text x="{x}" y="30" fill="{_COLOURS[number % len(_COLOURS)]}">— {escape(one.name)}</text>')
    return "\n".join([*parts, "</svg>"])


def _line(series: Series, colour: str, top: float, count: int) -> list[str]:
    points = [(_x(place, count), value) for place, value in enumerate(series.values) if math.isfinite(value)]
    drawn = " ".join(f"{x:.1f},{_y(value, top):.1f}" for x, value in points)
    dash = ' stroke-dasharray="5 4"' if series.dashed else ""
    parts = [f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>']
    parts += [f'<circle cx="{x:.1f}" cy="{_y(value, top):.1f}" r="3" fill="{colour}"/>' for x, value in points]
    for place, (value, error) in enumerate(zip(series.values, series.errors, strict=False)):
        if error and math.isfinite(value):
            x, high, low = _x(place, count), _y(value + error, top), _y(max(value - error, 0.0), top)
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{high:.1f}" y2="{low:.1f}" stroke="{colour}"/>')
    return parts


def _reach(series: Series, place: int) -> float:
    value = series.values[place]
    error = series.errors[place] if place < len(series.errors) else None
    return value + (error or 0.0) if math.isfinite(value) else 0.0


def _nice_top(value: float) -> float:
    """The next of 1, 2, 2.5, 5 × a power of ten from `value` on."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * 0.999)


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


def _x(place: int, count: int) -> float:
    room = _WIDTH - _LEFT - _RIGHT
    return _LEFT + room * (place + 0.5) / max(count, 1)


def _y(value: float, top: float) -> float:
    room = _HEIGHT - _TOP - _BOTTOM
    return _TOP + room * (1 - min(value, top) / top)
