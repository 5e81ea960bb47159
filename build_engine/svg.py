"""A small line and scatter chart as SVG text, so that plots need no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 820, 480
LEFT, RIGHT, TOP, BOTTOM = 80, 210, 50, 60
COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8f5bb5", "#e09f3e", "#3d405b", "#00798c", "#7d4f50", "#6b8e23")


@dataclass(frozen=True, slots=True)
class Series:
    """Points in data units; ``line`` joins them, ``labels`` are written beside the points. ``errors`` are half the
    widths of their error bars, None where there is none; what is not finite is left out.
    """

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = True
    labels: Sequence[str] = ()
    errors: Sequence[float | None] = ()
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    title: str
    logarithmic: bool = False


def chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """Draw ``series``; raises ValueError when there is no point, or none that a logarithmic axis can show."""
    points = [point for one in series for point in _reach(one) if _usable(point, x, y)]
    if not points:
        raise ValueError("nothing to draw")
    scale_x = _Scale([point[0] for point in points], x, LEFT, WIDTH - RIGHT)
    scale_y = _Scale([point[1] for point in points], y, HEIGHT - BOTTOM, TOP)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="26" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for value in scale_x.ticks():
        at = scale_x(value)
        body.append(f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#e4e4e4"/>')
        body.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_number(value)}</text>')
    for value in scale_y.ticks():
        at = scale_y(value)
        body.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" stroke="#e4e4e4"/>')
        body.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    body.append(f'<text x="{middle}" y="{HEIGHT - 18}" text-anchor="middle">{escape(x.title)}</text>')
    centre = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 20 {centre})"'
    body.append(f'<text x="20" y="{centre}" text-anchor="middle" {turned}>{escape(y.title)}</text>')
    for index, one in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        places = [(scale_x(px), scale_y(py)) for px, py in one.points if _usable((px, py), x, y)]
        if one.line and len(places) > 1:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
            dash = ' stroke-dasharray="5 4"' if one.dashed else ""
            body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        for (px, py), error in zip(one.points, one.errors, strict=False):
            if error and _usable((px, py), x, y) and _usable((px, py - error), x, y):
                ends = f'y1="{scale_y(py + error):.1f}" y2="{scale_y(py - error):.1f}"'
                body.append(f'<line x1="{scale_x(px):.1f}" x2="{scale_x(px):.1f}" {ends} stroke="{colour}"/>')
        body += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}"/>' for px, py in places]
        for (px, py), label in zip(places, one.labels, strict=False):
            body.append(f'<text x="{px + 7:.1f}" y="{py - 6:.1f}" fill="{colour}">{escape(label)}</text>')
        row = TOP + 10 + 20 * index
        body.append(f'<circle cx="{WIDTH - RIGHT + 20}" cy="{row - 4}" r="4" fill="{colour}"/>')
        body.append(f'<text x="{WIDTH - RIGHT + 32}" y="{row}">{escape(one.name)}</text>')
    return "\n".join([*body, "</svg>"]) + "\n"


class _Scale:
    def __init__(self, values: Sequence[float], axis: Axis, start: float, end: float) -> None:
        self.logarithmic = axis.logarithmic
        self.low, self.high = min(values), max(values)
        if not self.logarithmic:
            self.low = min(0.0, self.low) if self.low < 0.5 * self.high else self.low
            margin = (self.high - self.low or abs(self.high) or 1.0) * 0.05
            self.low, self.high = (self.low - margin if self.low != 0 else 0.0), self.high + margin
        elif self.low == self.high:
            self.low, self.high = self.low / 2, self.high * 2
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if len(decades) > 4 else (1, 2, 5)
            found = [step * 10.0**power for power in decades for step in steps]
        else:
            step = _nice_step((self.high - self.low) / 6)
            first = math.ceil(self.low / step)
            found = [step * index for index in range(first, math.floor(self.high / step) + 1)]
        return [value for value in found if self.low * 0.999 <= value <= self.high * 1.001]


def _reach(series: Series) -> list[tuple[float, float]]:
    """Its points and the ends of their error bars."""
    bars = [(px, py, error) for (px, py), error in zip(series.points, series.errors, strict=False) if error]
    ends = [(px, py + side * error) for px, py, error in bars for side in (1, -1)]
    return [*series.points, *ends]


def _usable(point: tuple[float, float], x: Axis, y: Axis) -> bool:
    shown = [(point[0], x), (point[1], y)]
    return all(math.isfinite(value) and (value > 0 or not axis.logarithmic) for value, axis in shown)


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def _number(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"
