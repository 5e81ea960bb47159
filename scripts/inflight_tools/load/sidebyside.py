"""Two load tests side by side on a page: both values, their ratio, and its 95 % interval as a bar. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from inflight_tools.load.compare import Ratio
from inflight_tools.load.stats import LevelResult
from inflight_tools.load.tables import scrolled
from inflight_tools.load.words import number

_LEAST_SPAN = math.log(1.1)  # of the scale to either side of 1: differences of a percent do not look like worlds
_TITLES = ("figure", "this test", "the other", "ratio", "", "95 % interval", "")
_ROOM = 8  # percent of the column at either end


def comparison(
    results: Sequence[LevelResult], other: Sequence[LevelResult], ratios: Sequence[Ratio]
) -> tuple[str, str]:
    """(the section, rules for the page's stylesheet that place the bars: elements have no style of their own)."""
    span = _span(ratios)
    rules = [f".track .one{{left:{_place(1.0, span):.1f}%}}"]
    bodies = []
    for load in dict.fromkeys(ratio.load for ratio in ratios):
        this = next(each for each in results if each.load == load)
        that = next(each for each in other if each.load == load)
        rows = [f'<tr><th class="left" scope="rowgroup" colspan="{len(_TITLES)}">{escape(load)}</th></tr>']
        for place, ratio in enumerate(ratios):
            if ratio.load == load:
                rows.append(_row(f"r{place}", ratio, this, that))
                rules += _rules(f"r{place}", ratio, span)
        bodies.append(f"<tbody>{''.join(rows)}</tbody>")
    head = "".join(f'<th scope="col">{title}</th>' if title else "<td></td>" for title in _TITLES)
    table = (
        f'<table class="stick" aria-label="This test over the other"><thead><tr>{head}</tr></thead>'
        f"{''.join(bodies)}</table>"
    )
    known = any(ratio.low is not None for ratio in ratios)
    note = (
        "Ratios of the runs' geometric means, this test over the other, with Welch's 95 % interval on a logarithmic "
        "scale; the dashed line is 1. More is better for rates, less for times."
        if known
        else "With a single run on either side there is no interval: measure both with --runs 3."
    )
    return (
        '<section aria-labelledby="compared"><h2 id="compared">This test over the other</h2>'
        f'<div class="panel">{scrolled(table, "This test over the other")}</div><p class="note">{note}</p></section>'
    ), "\n".join(rules)


def _row(name: str, ratio: Ratio, this: LevelResult, that: LevelResult) -> str:
    kind = ratio.verdict if ratio.verdict in ("better", "worse") else ""
    interval = ""
    if ratio.low is not None and ratio.high is not None:
        interval = f"{ratio.low:.3f} – {ratio.high:.3f}"
    bar = '<i class="bar"></i>' if interval else ""
    return (
        f'<tr id="{name}"><th scope="row">{escape(ratio.figure)}</th>'
        f"<td>{_value(this, ratio.figure)}</td><td>{_value(that, ratio.figure)}</td><td>{ratio.ratio:.3f}</td>"
        f'<td class="track {kind}" aria-hidden="true"><i class="one"></i>{bar}<i class="dot"></i></td>'
        f'<td>{interval}</td><td class="left {kind}">{escape(ratio.verdict)}</td></tr>'
    )


def _value(level: LevelResult, figure: str) -> str:
    values = {
        "tokens/s": level.tokens_per_s,
        "requests/s": level.requests_per_s,
        "TTFT p50": level.ttft.p50,
        "ITL p50": level.itl.p50,
        "latency p50": level.latency.p50,
    }
    unit = "" if figure.endswith("/s") else " ms"
    return number(values[figure]) + unit


def _span(ratios: Sequence[Ratio]) -> float:
    """The largest distance from 1, on a logarithmic scale, that has to be shown."""
    shown = [value for ratio in ratios for value in (ratio.ratio, ratio.low, ratio.high) if value]
    # A few runs can have an interval of any width: the bar may leave the picture, the figures say how far.
    most = 3 * max(abs(math.log(ratio.ratio)) for ratio in ratios) + _LEAST_SPAN
    return max(_LEAST_SPAN, min(most, max(abs(math.log(value)) for value in shown)))


def _place(value: float, span: float) -> float:
    """Percent of the column's width."""
    at = math.log(value) / span if value > 0 else -1.0
    return 50 + (50 - _ROOM) * min(max(at, -1.15), 1.15)


def _rules(name: str, ratio: Ratio, span: float) -> list[str]:
    made = [f"#{name} .dot{{left:{_place(ratio.ratio, span):.1f}%}}"]
    if ratio.low is not None and ratio.high is not None:
        low, high = _place(ratio.low, span), _place(ratio.high, span)
        made.append(f"#{name} .bar{{left:{low:.1f}%;width:{high - low:.1f}%}}")
    return made
