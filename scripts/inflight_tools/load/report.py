"""What a load test leaves: a table in the terminal, results.json, results.csv and report.html."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from build_engine import svg
from inflight_tools.load import stats as load_stats
from inflight_tools.load.compare import Ratio
from inflight_tools.load.stats import LevelResult, Percentiles

try:
    from rich.table import Table
except ModuleNotFoundError:
    raise SystemExit(
        f"error: the package rich is missing in {sys.executable}: run this with .venv/bin/python."
    ) from None

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 sans-serif; max-width: 1120px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
.charts { display: flex; flex-wrap: wrap; gap: 1em; }
.charts svg { width: 520px; border-radius: 4px; }
pre { white-space: pre-wrap; }
"""


def columns(results: Sequence[LevelResult], whole: bool = True) -> tuple[list[str], list[list[str]]]:
    """(titles, rows) of the figures; a column appears where somebody asked for it or it could be measured.

    Without `whole` those are left out that say little new.
    """
    several = any(len(result.runs) > 1 for result in results)
    priced = any(result.cost_per_1000_tokens is not None for result in results)
    limited = any(result.good_share < 1 for result in results)
    used = any(result.usage is not None for result in results)
    on_gpu = any(result.usage is not None and result.usage.gpu_percent is not None for result in results)
    titles = ["load", "requests/s", "tokens/s", "TTFT", "ITL", "latency"]
    titles += ["TPOT", "tokens/response"] * whole
    titles += ["goodput"] * limited + ["cost/1,000 tokens"] * priced
    titles += ["CPU cores", "GiB"] * used + ["GPU %", "GPU GiB"] * on_gpu
    rows = []
    for result in results:
        spread = f" ± {result.tokens_per_s_ci95:.1f}" if several and result.tokens_per_s_ci95 is not None else ""
        row = [result.load, f"{result.requests_per_s:.2f}", f"{result.tokens_per_s:.1f}{spread}"]
        row += [three(times) for times in (result.ttft, result.itl, result.latency)]
        row += [three(result.tpot), f"{result.tokens_per_response:.2f}"] * whole
        if limited:
            row.append(f"{result.goodput_requests_per_s:.2f} ({100 * result.good_share:.0f} %)")
        if priced:
            row.append("" if result.cost_per_1000_tokens is None else f"{result.cost_per_1000_tokens:.6f}")
        usage = result.usage
        if used:
            row += ["", ""] if usage is None else [f"{usage.cpu_cores:.2f}", f"{usage.memory / 2**30:.2f}"]
        if on_gpu:
            percent, memory = (usage.gpu_percent, usage.gpu_memory) if usage is not None else (None, None)
            row.append("" if percent is None else f"{percent:.0f}")
            row.append("" if memory is None else f"{memory / 2**30:.1f}")
        rows.append(row)
    return titles, rows


def three(times: Percentiles) -> str:
    """p50 / p90 / p99 in milliseconds."""
    parts = (times.p50, times.p90, times.p99)
    if not all(map(math.isfinite, parts)):
        return "–"
    return " / ".join(f"{value:.1f}" if value < 100 else f"{value:.0f}" for value in parts)


def terminal_table(results: Sequence[LevelResult], title: str) -> Table:
    """The figures for a person."""
    caption = "TTFT, ITL (inter-token latency) and latency in ms: p50 / p90 / p99"
    made = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    titles, rows = columns(results, whole=False)
    for name in titles:
        made.add_column(name, justify="left" if name == "load" else "right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    return made


def comparison_table(ratios: Sequence[Ratio], other: str) -> Table:
    """One test over another."""
    made = Table(title=f"this test over {other}", title_justify="left")
    for name in ("load", "figure", "ratio", "95 % interval", ""):
        made.add_column(name, justify="left" if name in ("load", "figure", "") else "right")
    for ratio in ratios:
        made.add_row(*_ratio_row(ratio))
    return made


def _ratio_row(ratio: Ratio) -> list[str]:
    interval = f"{ratio.low:.3f} – {ratio.high:.3f}" if ratio.low is not None and ratio.high is not None else ""
    return [ratio.load, ratio.figure, f"{ratio.ratio:.3f}", interval, ratio.verdict]


def write(
    folder: Path,
    about: Mapping[str, Any],
    results: Sequence[LevelResult],
    title: str,
    ratios: Sequence[Ratio] = (),
    other: Sequence[Mapping[str, Any]] = (),
) -> None:
    """results.json, results.csv (one row per level) and report.html in `folder`.

    `about` says what was measured where; `ratios` and the levels of the `other` test are its comparison, if any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {**about, "levels": [result.to_json() for result in results]}
    text = json.dumps(_without_nan(content), indent=1, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    rows = [result.to_row() for result in results]
    with (folder / "results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    page = html_report(about, results, title, ratios, other)
    (folder / "report.html").write_text(page, encoding="utf-8")


def html_report(
    about: Mapping[str, Any],
    results: Sequence[LevelResult],
    title: str,
    ratios: Sequence[Ratio] = (),
    other: Sequence[Mapping[str, Any]] = (),
) -> str:
    """One self-contained page: figures, charts, comparison, definitions, settings."""
    parts = [f"<h1>{escape(title)}</h1>", _html_table(*columns(results))]
    parts.append("<p>TTFT, ITL, latency, TPOT in ms: p50 / p90 / p99; goodput in requests/s.</p>")
    parts.append(f'<div class="charts">{"".join(_charts(results, other))}</div>')
    if ratios:
        titles = ["load", "figure", "ratio", "95 % interval", ""]
        parts += ["<h2>Over the other test</h2>", _html_table(titles, [_ratio_row(ratio) for ratio in ratios])]
    parts += ["<h2>What the figures mean</h2>", f"<pre>{escape((load_stats.__doc__ or '').strip())}</pre>"]
    settings = json.dumps(_without_nan(about), indent=1, ensure_ascii=False)
    parts += ["<h2>Settings and machine</h2>", f"<pre>{escape(settings)}</pre>"]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _charts(results: Sequence[LevelResult], other: Sequence[Mapping[str, Any]]) -> list[str]:
    values = [result.value for result in results]
    in_flight = results[0].load.startswith("concurrency")
    of_other = {level["load"]: level for level in other}
    speeds, errors = [result.tokens_per_s for result in results], [result.tokens_per_s_ci95 for result in results]
    speed = [svg.Series("tokens/s", list(zip(values, speeds, strict=True)), errors=errors)]
    before = [(result.value, of_other[result.load]["tokens_per_s"]) for result in results if result.load in of_other]
    if before:
        speed.append(svg.Series("the other", before, dashed=True))
    charts = {"tokens/s": speed}
    for name, what in (
        ("ttft", "time to first token, ms"),
        ("itl", "inter-token latency, ms"),
        ("latency", "latency, ms"),
    ):
        charts[what] = [
            svg.Series(part, [(result.value, float(getattr(getattr(result, name), part))) for result in results])
            for part in ("p50", "p90", "p99")
        ]
    x = svg.Axis("requests in flight" if in_flight else "requests sent per second", logarithmic=True)
    return [svg.chart(what, x, svg.Axis(what), series) for what, series in charts.items() if _drawable(series)]


def _drawable(series: Sequence[svg.Series]) -> bool:
    """Whether anything was measured at all."""
    return any(math.isfinite(value) for one in series for _, value in one.points)


def _html_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null says that there was nothing to measure."""
    if isinstance(value, Mapping):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
