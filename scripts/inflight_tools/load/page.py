"""A load test as one page: what was measured, what came out, pictures, the other test, settings. Pure.

Self-contained and without a script: it opens from a mail as well as under a policy that allows a stylesheet alone.
Behind every picture lie its figures as a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from inflight_tools.load import stats as load_stats
from inflight_tools.load.charts import Picture, pictures
from inflight_tools.load.compare import Ratio
from inflight_tools.load.earlier import read_level
from inflight_tools.load.settings import command, limits, machine_rows, settings_rows
from inflight_tools.load.sidebyside import comparison
from inflight_tools.load.stats import LevelResult
from inflight_tools.load.style import stylesheet
from inflight_tools.load.tables import Cell, Head, facts_table, html_table, scrolled
from inflight_tools.load.verdict import sentence, tiles
from inflight_tools.load.words import number

_TIMES = (("ttft", "TTFT, ms"), ("itl", "ITL, ms"), ("tpot", "TPOT, ms"), ("latency", "Latency, ms"))
_PARTS = ("p50", "p90", "p99")
_ONE_LEVEL = (
    '<p class="note">One level of load: measure several, such as --concurrency 1,4,16, to see what more load gives and '
    "costs.</p>"
)


def html_report(
    about: Mapping[str, Any],
    results: Sequence[LevelResult],
    title: str,
    ratios: Sequence[Ratio] = (),
    other: Sequence[Mapping[str, Any]] = (),
    about_other: Mapping[str, Any] | None = None,
) -> str:
    """The page. `ratios` compare this test with the levels of the `other` one, of which `about_other` tells."""
    settings, earlier = about.get("settings") or {}, [read_level(level) for level in other]
    objective = limits(settings)
    compared, rules = comparison(results, earlier, ratios) if ratios else ("", "")
    parts = [
        '<header><p class="kind">Load test</p>',
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(sentence(results))}</p></header>',
        _tiles(results, objective, ratios),
        '<section aria-labelledby="levels"><h2 id="levels">Every level</h2>',
        _throughput_table(results, limited=bool(objective)),
        _times_table(results),
        "</section>",
        '<section aria-labelledby="drawn"><h2 id="drawn">Pictures</h2><div class="pictures">',
        *(_figure(picture) for picture in pictures(results, earlier, objective)),
        "</div>",
        _ONE_LEVEL if len(results) == 1 else "",
        "</section>",
        compared,
        _told(about, about_other or {}),
        _meanings(),
        "<footer>Written by <code>inflight load-test</code>; the same figures lie beside as results.json and "
        "results.csv.</footer>",
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{stylesheet()}{rules}</style>"
    )
    body = "\n".join(part for part in parts if part)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>\n{body}\n</main></body></html>\n'


def _tiles(results: Sequence[LevelResult], objective: Mapping[str, float], ratios: Sequence[Ratio]) -> str:
    made = [
        f'<li><div class="name">{escape(tile.name)}</div><div class="value">{escape(tile.value)} '
        f'<span class="unit">{escape(tile.unit)}</span></div><div class="detail">{escape(tile.detail)}</div></li>'
        for tile in tiles(results, objective, ratios)
    ]
    return f'<ul class="tiles" aria-label="What came out">{"".join(made)}</ul>'


def _throughput_table(results: Sequence[LevelResult], *, limited: bool) -> str:
    """Rates, their cost, and the use of the machine; a column appears where somebody asked or it was measured."""
    used, priced = any(each.usage for each in results), any(each.cost_per_1000_tokens is not None for each in results)
    on_gpu = any(each.usage and each.usage.gpu_percent is not None for each in results)
    heads = ["load", "tokens/s", "requests/s", "requests", "tokens", "tokens a response", "prompt tokens"]
    heads += ["goodput, requests/s"] * limited + ["cost of 1,000 tokens"] * priced
    heads += ["CPU cores", "CPU s per 1,000 tokens", "memory, GiB"] * used + ["GPU, %", "GPU memory, GiB"] * on_gpu
    best = max(results, key=lambda result: result.tokens_per_s)
    rows = []
    for each in results:
        spread = f"± {number(each.tokens_per_s_ci95)}" if each.tokens_per_s_ci95 is not None else ""
        rates = [run.requests_per_s for run in each.runs]
        row = [
            Cell(each.load),
            Cell(number(each.tokens_per_s), spread),
            Cell(number(each.requests_per_s), _span(rates)),
        ]
        row += [Cell(f"{each.requests:,}"), Cell(f"{each.tokens:,}"), Cell(number(each.tokens_per_response))]
        row.append(Cell(number(each.prompt_tokens)))
        if limited:
            row.append(Cell(number(each.goodput_requests_per_s), f"{100 * each.good_share:.0f} % of them"))
        if priced:
            cost = each.cost_per_1000_tokens
            row.append(Cell("–" if cost is None else f"{cost:.3g}"))
        usage = each.usage
        if used:
            figures = () if usage is None else (usage.cpu_cores, usage.cpu_s_per_1000_tokens, usage.memory / 2**30)
            row += [Cell(number(value)) for value in figures or (None,) * 3]
        if on_gpu:
            percent, memory = (usage.gpu_percent, usage.gpu_memory) if usage else (None, None)
            row += [Cell(number(percent)), Cell(number(None if memory is None else memory / 2**30))]
        rows.append(row)
    marked = results.index(best) if len(results) > 1 else None
    runs = max(len(each.runs) for each in results)
    note = "Means of the runs, ± the 95 % interval of the mean (small: least to most of the runs)."
    if runs == 1:
        note = "One run of each level: there is no spread. Measure with --runs 3 to have one."
    elif runs == 2:
        note += " Two runs make wide intervals: more narrow them."
    table = html_table([Head(title) for title in heads], rows, "Throughput of every level", marked)
    shaded = " The shaded level gave the most tokens." if marked is not None else ""
    return f'<div class="panel">{scrolled(table, "Throughput of every level")}</div><p class="note">{note}{shaded}</p>'


def _times_table(results: Sequence[LevelResult]) -> str:
    """Percentiles of every time; small below a median: that of the single runs."""
    heads = [Head("load")]
    heads += [Head(part, group) for _, group in _TIMES for part in _PARTS]
    rows = []
    for each in results:
        row = [Cell(each.load)]
        for name, _ in _TIMES:
            medians = [float(getattr(run, f"{name}_p50")) for run in each.runs]
            for part in _PARTS:
                small = _span(medians) if part == "p50" else ""
                row.append(Cell(number(getattr(getattr(each, name), part)), small))
        rows.append(row)
    several = any(len(each.runs) > 1 for each in results)
    note = "Milliseconds, over the requests of all runs" if several else "Milliseconds, over all requests"
    note += " (ITL: over all tokens)." + (" Small: the medians of the single runs, least to most." if several else "")
    table = html_table(heads, rows, "Times of every level in milliseconds")
    return f'<div class="panel">{scrolled(table, "Times of every level")}</div><p class="note">{note}</p>'


def _span(values: Sequence[float]) -> str:
    """Least to most of several runs."""
    finite = [value for value in values if math.isfinite(value)]
    return f"{number(min(finite))} – {number(max(finite))}" if len(finite) > 1 else ""


def _figure(picture: Picture) -> str:
    rows = [[Cell(cell) for cell in row] for row in picture.rows]
    table = html_table([Head(title) for title in picture.titles], rows, f"{picture.title}: figures")
    return (
        f"<figure><figcaption><h3>{escape(picture.title)}</h3><p>{escape(picture.caption)}</p></figcaption>"
        f"{picture.drawing}<details><summary>Its figures as a table</summary>"
        f"{scrolled(table, f'{picture.title}: figures')}</details></figure>"
    )


def _told(about: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Settings and machine, beside those of the other test where there is one."""
    settings = about.get("settings") or {}
    asked = facts_table("Settings", settings_rows(settings), settings_rows(other.get("settings") or {}))
    where = facts_table("Machine", machine_rows(about), machine_rows(other))
    if not asked and not where:
        return ""
    again = ""
    if settings:
        again = f"<h2>To measure the same again</h2><pre><code>{escape(command(settings))}</code></pre>"
    return f'<section aria-label="Settings and machine"><div class="pair">{asked}{where}</div>{again}</section>'


def _meanings() -> str:
    """The definitions of `load/stats.py`, where they are made true."""
    found: list[str] = []
    for line in (load_stats.__doc__ or "").splitlines():
        if line.startswith("- "):
            found.append(line[2:])
        elif line.startswith("  ") and found:
            found[-1] += " " + line.strip()
    pairs = [each.partition(": ") for each in found]
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text[:1].upper() + text[1:])}</dd>" for name, _, text in pairs)
    return (
        '<section aria-labelledby="meanings"><h2 id="meanings">What the figures mean</h2>'
        f'<div class="panel"><dl>{terms}</dl></div></section>'
    )
