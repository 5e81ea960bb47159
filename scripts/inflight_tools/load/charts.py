"""The pictures of a load test's report, each with the table of what it shows. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from build_engine import svg
from inflight_tools.load.stats import LevelResult, Percentiles
from inflight_tools.load.words import in_flight, number

_TOLD = (0.5, 0.9, 0.99)  # shares that get a mark on a distribution
_IN_TABLE = (0.0, 0.1, 0.5, 0.9, 0.95, 0.99, 1.0)
# A few responses that arrive one upon another have next to no time between them: curves begin at so small a part of the
# least median, or those few would take half of the picture.
_DOWN = 10
_THIS, _OTHER, _FIRST = 0, 4, 1  # colours by their number


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing (SVG), what it is, how to read it, and its figures: titles and rows of cells."""

    name: str
    title: str
    caption: str
    drawing: str
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]


def pictures(
    results: Sequence[LevelResult], other: Sequence[LevelResult], limits: Mapping[str, float]
) -> list[Picture]:
    """Those for which something was measured. `other` is the test that this one is compared with, or empty.

    A single level of load makes no curve over the load.
    """
    loads = {result.load for result in results}
    other = [level for level in other if level.load in loads]
    several = len(results) > 1
    found = [
        throughput(results, other) if several else None,
        trade_off(results, other, limits) if several else None,
        distribution("ttft", results, other, limits.get("ttft")),
        distribution("itl", results, other, None),
    ]
    return [picture for picture in found if picture is not None]


def throughput(results: Sequence[LevelResult], other: Sequence[LevelResult]) -> Picture | None:
    """Tokens per second over the load."""
    several = any(result.tokens_per_s_ci95 is not None for result in [*results, *other])
    series = [_speeds("this test", results, _THIS, dashed=False)]
    if other:
        series.append(_speeds("the other test", other, _OTHER, dashed=True))
    how = "requests in flight" if results[0].load.startswith("concurrency") else "requests sent per second"
    ticks = [result.value for result in results]
    drawing = _chart(
        "Tokens per second over the load", svg.Axis(how, True, ticks), svg.Axis("tokens/s", zero=True), series
    )
    if drawing is None:
        return None
    bars = " Bars are 95 % intervals of the mean over the runs." if several else " One run: there is no spread."
    rows = []
    for result in results:
        same = next((level for level in other if level.load == result.load), None)
        rows.append([result.load, _speed(result), *([_speed(same)] if other and same else [""] if other else [])])
    titles = ["load", "tokens/s"] + ["tokens/s of the other test"] * bool(other)
    return Picture("throughput", "Throughput over the load", f"The axis is logarithmic.{bars}", drawing, titles, rows)


def trade_off(
    results: Sequence[LevelResult], other: Sequence[LevelResult], limits: Mapping[str, float]
) -> Picture | None:
    """What more tokens per second cost in time: median and 99th percentile of answers and of first tokens."""
    series = _ways("answer", results, "latency", _THIS, labelled=True)
    if other:
        series = _ways("this", results, "latency", _THIS, labelled=True)
        series += _ways("other", other, "latency", _OTHER)
    else:
        series += _ways("first token", results, "ttft", _FIRST)
    times = [at for one in series for _, at in one.points if at > 0 and math.isfinite(at)]
    if not times:
        return None
    rule = [svg.Rule(limits["latency"], f"latency ≤ {limits['latency']:g} ms")] if "latency" in limits else []
    speeds = [speed for one in series for speed, _ in one.points if speed > 0]
    x, y = svg.fitting("tokens/s", speeds), svg.fitting("ms", times)
    drawing = _chart("Throughput against latency", x, y, series, rule)
    if drawing is None:
        return None
    caption = "Right and low is good. Each mark is a level of load, whose number stands beside it."
    titles = ["load", "tokens/s", "TTFT p50, ms", "TTFT p99, ms", "latency p50, ms", "latency p99, ms"]
    named = [(result.load, result) for result in results] + [(f"{level.load}, other", level) for level in other]
    rows = [
        [name, _speed(each), *map(number, (each.ttft.p50, each.ttft.p99, each.latency.p50, each.latency.p99))]
        for name, each in named
    ]
    return Picture("trade-off", "Throughput against latency", caption, drawing, titles, rows)


def distribution(
    of: Literal["ttft", "itl"], results: Sequence[LevelResult], other: Sequence[LevelResult], limit: float | None
) -> Picture | None:
    """Which share of the requests (or tokens) took at most how long, per level."""
    what, share = ("Time to the first token", "requests") if of == "ttft" else ("Time between tokens", "tokens")
    ranks = {result.load: _rank(number, len(results)) for number, result in enumerate(results)}
    medians = [at for each in [*results, *other] if (at := _at(each, of, 0.5)) > 0]
    least = min(medians, default=0.0) / _DOWN
    series = [_curve(result, of, ranks[result.load], least, dashed=False) for result in results]
    series += [_curve(level, of, ranks[level.load], least, dashed=True) for level in other]
    series = [one for one in series if any(at > 0 for at, _ in one.points)]
    times = [at for one in series for at, _ in one.points if at > 0]
    if not times:
        return None
    rule = [svg.Rule(limit, f"limit {limit:g} ms", upright=True)] if limit is not None else []
    y = svg.Axis(f"% of the {share}", bounds=(0, 100), ticks=(0, 25, 50, 75, 90, 100))
    drawing = _chart(f"{what}: distribution", svg.fitting("ms", times), y, series, rule)
    if drawing is None:
        return None
    caption = f"The share of the {share} that took at most so long; marks at 50, 90 and 99 %."
    caption += " Dashed: the other test." if any(one.dashed for one in series) else ""
    titles = ["load", "least, ms", *(f"p{100 * part:g}" for part in _IN_TABLE[1:-1]), "most"]
    named = [(result.load, result) for result in results] + [(f"{level.load}, other", level) for level in other]
    rows = [[name, *(number(_at(each, of, part)) for part in _IN_TABLE)] for name, each in named if _has(each, of)]
    return Picture(of, f"{what} ({of.upper()})", caption, drawing, titles, rows)


def _chart(
    title: str, x: svg.Axis, y: svg.Axis, series: Sequence[svg.Series], rules: Sequence[svg.Rule] = ()
) -> str | None:
    """None where nothing was measured that the axes can show."""
    try:
        return svg.chart(title, x, y, series, svg.NARROW, rules)
    except ValueError:
        return None


def _speeds(name: str, levels: Sequence[LevelResult], colour: int, *, dashed: bool) -> svg.Series:
    points = [(level.value, level.tokens_per_s) for level in levels]
    notes = [f"{in_flight(level.load, level.value)}: {_speed(level)} tokens/s" for level in levels]
    errors = [level.tokens_per_s_ci95 for level in levels]
    return svg.Series(name, points, errors=errors, notes=notes, dashed=dashed, like=colour)


def _ways(
    name: str, levels: Sequence[LevelResult], of: str, colour: int, *, labelled: bool = False
) -> list[svg.Series]:
    """Median and 99th percentile of one time over throughput."""
    made = []
    for part in ("p50", "p99"):
        times: list[Percentiles] = [getattr(level, of) for level in levels]
        points = [(level.tokens_per_s, float(getattr(each, part))) for level, each in zip(levels, times, strict=True)]
        notes = [
            f"{in_flight(level.load, level.value)}: {number(level.tokens_per_s)} tokens/s, {part} {number(at)} ms"
            for level, (_, at) in zip(levels, points, strict=True)
        ]
        labels = [f"{level.value:g}" for level in levels] if labelled and part == "p99" else []
        made.append(
            svg.Series(f"{name}, {part}", points, labels=labels, notes=notes, dashed=part == "p99", like=colour)
        )
    return made


def _curve(level: LevelResult, of: str, rank: int, least: float, *, dashed: bool) -> svg.Series:
    name = in_flight(level.load, level.value) + (", other" if dashed else "")
    times = getattr(level.curves, of)
    points = [(at, 100 * share) for at, share in zip(times, level.curves.shares, strict=False) if at >= least]
    marked = [(_at(level, of, share), 100 * share) for share in _TOLD] if times else []
    notes = [f"{name}: {share:g} % within {number(at)} ms" for at, share in marked]
    return svg.Series(name, points, marked=marked, notes=notes, dashed=dashed, rank=rank, named=not dashed)


def _rank(place: int, count: int) -> int:
    """A few levels take colours that are far apart."""
    most = len(svg.ORDER) - 1
    return round(place * most / (count - 1)) if 1 < count <= most + 1 else place


def _at(level: LevelResult, of: str, share: float) -> float:
    times = dict(zip(level.curves.shares, getattr(level.curves, of), strict=False))
    return float(times.get(share, math.nan))


def _has(level: LevelResult, of: str) -> bool:
    return bool(getattr(level.curves, of))


def _speed(level: LevelResult) -> str:
    spread = "" if level.tokens_per_s_ci95 is None else f" ± {number(level.tokens_per_s_ci95)}"
    return number(level.tokens_per_s) + spread
