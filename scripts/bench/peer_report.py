"""What a comparison of peers leaves for people: tables in Markdown and charts. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.peer_figures import Ratio, Row
from build_engine import svg


def charts(made: Sequence[Row]) -> dict[str, str]:
    """SVG by file name: tokens/s and TTFT over the requests in flight, of the workload that has most such levels."""
    levels = {row.workload: set[str]() for row in made}
    for row in made:
        if row.load.startswith("concurrency"):
            levels[row.workload].add(row.load)
    if not any(levels.values()):
        return {}
    shown = max(levels, key=lambda work: len(levels[work]))
    found = {}
    for name, title in (("tokens_per_s", "tokens/s"), ("ttft_p50_ms", "time to first token, p50, ms")):
        series = []
        for peer in dict.fromkeys(row.peer for row in made):
            points = [
                (float(row.load.split()[1]), row.figures[name])
                for row in made
                if (row.peer, row.workload) == (peer, shown) and row.load.startswith("concurrency")
            ]
            if points:
                series.append(svg.Series(peer, sorted(points)))
        sizes, values = zip(*(point for one in series for point in one.points), strict=True)
        x, y = svg.Axis("requests in flight", logarithmic=True, ticks=sizes), svg.fitting(title, values)
        about = f", {shown}" if shown else ""
        found[f"{name}.svg"] = svg.chart(f"{title} against requests in flight{about}", x, y, series)
    return found


def tables(made: Sequence[Row], compared: Sequence[Ratio]) -> str:
    """Figures and ratios as Markdown, workload by workload."""
    lines: list[str] = []
    for work in dict.fromkeys(row.workload for row in made):
        lines += [f"\n{work}:\n"] if work else []
        lines += _figures([row for row in made if row.workload == work])
        lines += _ratios([each for each in compared if each.workload == work])
    return "\n".join(lines)


def _figures(made: Sequence[Row]) -> list[str]:
    lines = [
        "| load | peer | tokens/s (least–most) | TTFT p50 / p99, ms | TPOT p50, ms | ITL p50 / p99, ms "
        "| between responses p99, ms | latency p50, ms | others ≤ |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in made:
        (few, lots), of = row.tokens_per_s_least_most, row.figures
        digits = 0 if of["tokens_per_s"] >= 100 else 1
        gap = of.get("gap_p99_ms", math.nan)  # older records lack it
        lines.append(
            f"| {row.load} | {row.peer} | {of['tokens_per_s']:.{digits}f} ({few:.{digits}f}–{lots:.{digits}f}) "
            f"| {of['ttft_p50_ms']:.0f} / {of['ttft_p99_ms']:.0f} | {of['tpot_p50_ms']:.1f} "
            f"| {of['itl_p50_ms']:.1f} / {of['itl_p99_ms']:.0f} | {'' if math.isnan(gap) else f'{gap:.0f}'} "
            f"| {of['latency_p50_ms']:.0f} | {row.cpu_share_of_others:.0%} |"
        )
    return lines


def _ratios(compared: Sequence[Ratio]) -> list[str]:
    lines = ["", "| load | of | over | tokens/s (least–most) | TTFT p50 | latency p50 |", "|---|---|---|---|---|---|"]
    for each in compared:
        lines.append(
            f"| {each.load} | {each.base} | {each.peer} | {each.tokens_per_s:.2f} ({min(each.each):.2f}–"
            f"{max(each.each):.2f}) | {each.ttft_p50:.2f} | {each.latency_p50:.2f} |"
        )
    return lines
