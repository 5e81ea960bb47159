"""What a load test leaves: a table in the terminal, results.json, results.csv and report.html."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inflight_tools.load.compare import Ratio
from inflight_tools.load.page import html_report
from inflight_tools.load.stats import LevelResult, Percentiles

try:
    from rich.table import Table
except ModuleNotFoundError:
    raise SystemExit(
        f"error: the package rich is missing in {sys.executable}: run this with .venv/bin/python."
    ) from None


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
    about_other: Mapping[str, Any] | None = None,
) -> None:
    """results.json, results.csv (one row per level) and report.html in `folder`.

    `about` says what was measured where; `ratios` and the levels of the `other` test are its comparison, if any, and
    `about_other` what that says of itself.
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
    page = html_report(about, results, title, ratios, other, about_other)
    (folder / "report.html").write_text(page, encoding="utf-8")


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null says that there was nothing to measure."""
    if isinstance(value, Mapping):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
