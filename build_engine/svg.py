"""A small line and scatter chart as SVG text, so that plots need no plotting library.

Colours can be told apart without seeing all of them, and every series has a mark of its own shape beside. On a page, a
stylesheet may give other colours to the classes: `ground`, `grid`, `rule`, `text`, `c0` … for series and `o0` … for
those in an order. Nothing has a style of its own, so that no page's policy stands against it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 820, 480
# On white, and on a dark page. The first six of each, and all of an order, can be told apart by people who lack one
# kind of cone (tests/unit/build/test_svg.py computes it).
COLOURS = ("#1f83ee", "#a8380c", "#2c6a4c", "#6f3a86", "#bc8200", "#1c2733", "#d6478a", "#0f8f8f", "#7d7f2a")
DARK_COLOURS = ("#66d9ff", "#e8623a", "#2f9e7a", "#c285ff", "#f0d74c", "#e9edf2", "#ff9cc8", "#7fe0d0", "#b9bb6a")
ORDER = ("#1d0158", "#7600d9", "#a53ab5", "#e61981", "#d6745c", "#ae9100")
DARK_ORDER = ("#9494f6", "#9d45ff", "#ac619d", "#f14768", "#e88b35", "#eaff46")
DARK_GROUND = "#14181e"
_MARKS = ("circle", "square", "triangle", "diamond", "turned", "cross", "bar")
_LETTER = 0.55  # width of a letter over the size of the font, roughly: to wrap the names of series
_KEY = 18  # length of the piece of line beside a name
_SPAN = 4  # an axis is logarithmic where its largest value is more than that many times its least
_LEAST_GAP = 22  # between labels of an axis along x


@dataclass(frozen=True, slots=True)
class Frame:
    """The room of a chart. Names of series stand beside the drawing, or above it in as many rows as they need."""

    width: int = WIDTH
    height: int = HEIGHT
    left: int = 80
    right: int = 210
    top: int = 50
    bottom: int = 60
    font: int = 12
    names_above: bool = False


WIDE = Frame()
NARROW = Frame(480, 400, 52, 14, 24, 46, 13, names_above=True)
"""Its letters can be read on a phone, where all of it is as wide as the screen."""


@dataclass(frozen=True, slots=True)
class Series:
    """Points in data units; ``line`` joins them, ``labels`` are written beside the points. ``errors`` are half the
    widths of their error bars, None where there is none; what is not finite is left out.

    ``marked`` are the points that get a mark (all, if None), ``notes`` what a pointer over the marks is told.
    ``rank`` takes the colour from those in an order, ``like`` that of another series by its number. What is not
    ``named`` has no entry beside the drawing.
    """

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = True
    labels: Sequence[str] = ()
    errors: Sequence[float | None] = ()
    dashed: bool = False
    marked: Sequence[tuple[float, float]] | None = None
    notes: Sequence[str] = ()
    rank: int | None = None
    like: int | None = None
    named: bool = True


@dataclass(frozen=True, slots=True)
class Axis:
    """``ticks`` are where its labels stand, if not at round numbers; ``bounds`` its ends, ``zero`` that one is at 0."""

    title: str
    logarithmic: bool = False
    ticks: Sequence[float] = ()
    bounds: tuple[float, float] | None = None
    zero: bool = False


def fitting(title: str, values: Iterable[float]) -> Axis:
    """An axis for `values`: logarithmic where they span much, else from zero, so that small changes look small."""
    shown = [value for value in values if math.isfinite(value)]
    return Axis(title, bool(shown) and 0 < min(shown) < max(shown) / _SPAN, zero=True)


@dataclass(frozen=True, slots=True)
class Rule:
    """A dashed line across the drawing at one value, with its meaning: ``upright`` at a value of x, else of y."""

    value: float
    text: str
    upright: bool = False


def chart(
    title: str, x: Axis, y: Axis, series: Sequence[Series], frame: Frame = WIDE, rules: Sequence[Rule] = ()
) -> str:
    """Draw ``series``; raises ValueError when there is no point, or none that a logarithmic axis can show."""
    points = [point for one in series for point in _reach(one, y.zero) if _usable(point, x, y)]
    if not points:
        raise ValueError("nothing to draw")
    rows = _rows_of_names([one.name for one in series if one.named], frame) if frame.names_above else []
    top = frame.top + round(frame.font * 1.6) * len(rows)
    right, bottom = frame.width - frame.right, frame.height - frame.bottom
    rules = [rule for rule in rules if _usable((rule.value, 1.0) if rule.upright else (1.0, rule.value), x, y)]
    scale_x = _Scale([point[0] for point in points] + [r.value for r in rules if r.upright], x, frame.left, right)
    scale_y = _Scale([point[1] for point in points] + [r.value for r in rules if not r.upright], y, bottom, top)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="{frame.font}">',
        f'<rect class="ground" width="{frame.width}" height="{frame.height}" fill="white"/>',
    ]
    if not frame.names_above:
        body.append(_text(frame.left, 26, title, extra='font-size="15" font-weight="bold"'))
    body += _grid(scale_x, scale_y, frame, top)
    body += _titles(x, y, frame, top)
    for index, one in enumerate(series):
        body += _drawn(one, index, x, y, scale_x, scale_y)
    for rule in rules:
        body += _rule(rule, scale_x, scale_y, frame, top)
    named = [(index, one) for index, one in enumerate(series) if one.named]
    places = _above(rows, frame) if frame.names_above else _beside(len(named), frame)
    for (index, one), (left, baseline) in zip(named, places, strict=True):
        body += _key(one, index, left, baseline)
    return "\n".join([*body, "</svg>"]) + "\n"


def _grid(x: _Scale, y: _Scale, frame: Frame, top: int) -> Iterator[str]:
    right, bottom = frame.width - frame.right, frame.height - frame.bottom
    taken = -math.inf
    for value in x.ticks():
        at = x(value)
        yield f'<line class="grid" x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{bottom}" stroke="#e4e4e4"/>'
        if at - taken >= _LEAST_GAP:
            taken = at
            yield _text(at, bottom + frame.font + 6, _number(value), "middle")
    for value in y.ticks():
        at = y(value)
        yield f'<line class="grid" x1="{frame.left}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}" stroke="#e4e4e4"/>'
        yield _text(frame.left - 8, at + 4, _number(value), "end")


def _titles(x: Axis, y: Axis, frame: Frame, top: int) -> Iterator[str]:
    """Beside the axes where there is room; in a narrow frame y's stands above its labels."""
    yield _text((frame.left + frame.width - frame.right) / 2, frame.height - frame.bottom + 42, x.title, "middle")
    if frame.names_above:
        yield _text(4, top - 10, y.title)
        return
    centre = (top + frame.height - frame.bottom) / 2
    yield _text(20, centre, y.title, "middle", f'transform="rotate(-90 20 {centre})"')


def _rule(rule: Rule, x: _Scale, y: _Scale, frame: Frame, top: int) -> Iterator[str]:
    right, bottom = frame.width - frame.right, frame.height - frame.bottom
    if rule.upright:
        at = x(rule.value)
        left_half = at <= (frame.left + right) / 2
        ends = f'x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"'
        words = _label(at + 5, bottom - 8, rule.text) if left_half else _label(at - 5, bottom - 8, rule.text, "end")
    else:
        at = y(rule.value)
        ends = f'x1="{frame.left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"'
        words = _label(right - 4, at - 5, rule.text, "end")
    yield f'<line class="rule" {ends} stroke="#666" stroke-dasharray="2 3"/>'
    yield words


def _drawn(one: Series, index: int, x: Axis, y: Axis, scale_x: _Scale, scale_y: _Scale) -> Iterator[str]:
    colour = _colour(one, index)
    shown = [point for point in one.points if _usable(point, x, y)]
    if one.line and len(shown) > 1:
        path = " ".join(f"{scale_x(px):.1f},{scale_y(py):.1f}" for px, py in shown)
        dash = ' stroke-dasharray="5 4"' if one.dashed else ""
        yield f'<polyline {colour} points="{path}" fill="none" stroke="currentColor" stroke-width="2"{dash}/>'
    aside = 4 if one.dashed else 0  # so that the bars of two series at the same places do not hide each other
    for (px, py), error in zip(one.points, one.errors, strict=False):
        if error and _usable((px, py), x, y):
            low = max(py - error, scale_y.low)  # a bar that goes on below the drawing ends at its edge
            at, top, bottom = scale_x(px) + aside, scale_y(py + error), scale_y(low)
            yield f'<line {colour} x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" stroke="currentColor"/>'
            caps = f"M{at - 3:.1f},{top:.1f}h6" + (f"M{at - 3:.1f},{bottom:.1f}h6" if low == py - error else "")
            yield f'<path {colour} d="{caps}" stroke="currentColor"/>'
    marked = shown if one.marked is None else [point for point in one.marked if _usable(point, x, y)]
    for place, (px, py) in enumerate(marked):
        note = one.notes[place] if place < len(one.notes) else ""
        yield _mark(_shape(one, index), scale_x(px), scale_y(py), colour, one.dashed, note)
    for (px, py), label in zip(shown, one.labels, strict=False):
        yield _label(scale_x(px) + 7, scale_y(py) - 6, label)


def _colour(one: Series, index: int) -> str:
    """Attributes: a class for stylesheets, and the colour where there is none."""
    if one.rank is not None:
        place = one.rank % len(ORDER)
        return f'class="o{place}" color="{ORDER[place]}"'
    place = (index if one.like is None else one.like) % len(COLOURS)
    return f'class="c{place}" color="{COLOURS[place]}"'


def _shape(one: Series, index: int) -> str:
    number = one.rank if one.rank is not None else index if one.like is None else one.like
    return _MARKS[number % len(_MARKS)]


def _mark(shape: str, at_x: float, at_y: float, colour: str, hollow: bool, note: str = "") -> str:
    """A dashed line's marks are hollow."""
    corners = {
        "square": ((-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)),
        "triangle": ((0, -4.8), (4.6, 3.6), (-4.6, 3.6)),
        "diamond": ((0, -5), (5, 0), (0, 5), (-5, 0)),
        "turned": ((0, 4.8), (4.6, -3.6), (-4.6, -3.6)),
        "bar": ((-1.8, -5), (1.8, -5), (1.8, 5), (-1.8, 5)),
        "cross": (
            *((-1.6, -5), (1.6, -5), (1.6, -1.6), (5, -1.6), (5, 1.6), (1.6, 1.6)),
            *((1.6, 5), (-1.6, 5), (-1.6, 1.6), (-5, 1.6), (-5, -1.6), (-1.6, -1.6)),
        ),
    }
    fill = 'fill="white" stroke="currentColor" stroke-width="1.6"' if hollow else 'fill="currentColor"'
    extra = colour.replace('class="', 'class="hollow ') if hollow else colour
    told = f"<title>{escape(note)}</title>" if note else ""
    if shape == "circle":
        return f'<circle {extra} cx="{at_x:.1f}" cy="{at_y:.1f}" r="4" {fill}>{told}</circle>'
    path = " ".join(f"{at_x + dx:.1f},{at_y + dy:.1f}" for dx, dy in corners[shape])
    return f'<polygon {extra} points="{path}" {fill}>{told}</polygon>'


def _key(one: Series, index: int, left: float, baseline: float) -> Iterator[str]:
    """A piece of its line, its mark and its name."""
    colour, middle = _colour(one, index), baseline - 4
    if one.line:
        dash = ' stroke-dasharray="5 4"' if one.dashed else ""
        ends = f'x1="{left:.1f}" x2="{left + _KEY:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"'
        yield f'<line {colour} {ends} stroke="currentColor" stroke-width="2"{dash}/>'
    yield _mark(_shape(one, index), left + _KEY / 2, middle, colour, one.dashed)
    yield _text(left + _KEY + 6, baseline, one.name)


def _rows_of_names(names: Sequence[str], frame: Frame) -> list[list[float]]:
    """For each row the places along x of its names."""
    rows: list[list[float]] = [[]]
    at = 4.0
    for name in names:
        width = _KEY + 6 + _LETTER * frame.font * len(name)
        if rows[-1] and at + width > frame.width:
            rows.append([])
            at = 4.0
        rows[-1].append(at)
        at += width + 12
    return rows


def _above(rows: Sequence[Sequence[float]], frame: Frame) -> list[tuple[float, float]]:
    step = round(frame.font * 1.6)
    return [(left, frame.font + 2 + step * number) for number, row in enumerate(rows) for left in row]


def _beside(count: int, frame: Frame) -> list[tuple[float, float]]:
    return [(frame.width - frame.right + 10, frame.top + 10 + 20 * number) for number in range(count)]


def _label(at_x: float, at_y: float, text: str, anchor: str = "start") -> str:
    """Text upon the drawing, with a seam in the colour of the ground."""
    seam = 'stroke="white" stroke-width="3" stroke-linejoin="round" paint-order="stroke"'
    return _text(at_x, at_y, text, anchor, seam).replace('class="text"', 'class="text seam"')


def _text(at_x: float, at_y: float, text: str, anchor: str = "start", extra: str = "") -> str:
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    more = f" {extra}" if extra else ""
    return f'<text class="text" x="{at_x:.1f}" y="{at_y:.1f}"{where}{more}>{escape(text)}</text>'


class _Scale:
    def __init__(self, values: Sequence[float], axis: Axis, start: float, end: float) -> None:
        self.axis = axis
        self.logarithmic = axis.logarithmic
        self.low, self.high = axis.bounds or (min(values), max(values))
        if axis.bounds is None and self.logarithmic:
            # A little room at both ends; a single value stands in the middle.
            room = (self.high / self.low) ** 0.04 if self.low < self.high else 2.0
            self.low, self.high = self.low / room, self.high * room
        elif axis.bounds is None:
            self.low = min(0.0, self.low) if axis.zero or self.low < 0.5 * self.high else self.low
            margin = (self.high - self.low or abs(self.high) or 1.0) * 0.05
            self.low, self.high = (self.low - margin if self.low != 0 else 0.0), self.high + margin
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        if self.axis.ticks:
            return self._within(sorted(set(self.axis.ticks)))
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if len(decades) > 5 else (1, 2, 5)
            found = self._within([step * 10.0**power for power in decades for step in steps])
            if len(found) > 2:
                return found
        step = _nice_step((self.high - self.low) / 6)
        first = math.ceil(self.low / step)
        return self._within([step * index for index in range(first, math.floor(self.high / step) + 1)])

    def _within(self, values: Sequence[float]) -> list[float]:
        return [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]


def _reach(series: Series, above_zero: bool) -> list[tuple[float, float]]:
    """Its points and the ends of their error bars."""
    bars = [(px, py, error) for (px, py), error in zip(series.points, series.errors, strict=False) if error]
    ends = [
        (px, max(py + side * error, 0.0 if above_zero else -math.inf)) for px, py, error in bars for side in (1, -1)
    ]
    return [*series.points, *ends]


def _usable(point: tuple[float, float], x: Axis, y: Axis) -> bool:
    shown = [(point[0], x), (point[1], y)]
    return all(math.isfinite(value) and (value > 0 or not axis.logarithmic) for value, axis in shown)


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def _number(value: float) -> str:
    if 1000 <= abs(value) < 1e4 and value % 100:
        return f"{value:,.0f}"  # 1,024 streams
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"
