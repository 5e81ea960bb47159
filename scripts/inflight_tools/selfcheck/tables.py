"""Tables of a self-check's report: a library without Inflight level by level, and recipes against plain weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

PLAIN = "none"  # the recipe that others are compared with


def bench_table(levels: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: what came through tritonserver beside the bare library, at every concurrency. TTFT and ITL are
    medians.
    """
    if not levels:
        return
    yield ""
    yield "| concurrency | tokens/s | bare | ratio | TTFT, ms | bare | ITL, ms | bare | of the bandwidth | bare |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for level in levels:
        cells = [str(level["concurrency"])]
        cells += [number(level.get(f"{who}_tokens_per_s"), ".1f") for who in ("served", "vllm")]
        cells.append(number(level.get("ratio"), ".3f"))
        cells += [number(level.get(f"{who}_ttft_ms"), ".1f") for who in ("served", "vllm")]
        cells += [number(level.get(f"{who}_itl_ms"), ".2f") for who in ("served", "vllm")]
        cells += [number(level.get(f"{who}_bandwidth_share"), ".1%") for who in ("served", "vllm")]
        yield f"| {' | '.join(cells)} |"


def number(value: float | None, form: str) -> str:
    """The figure, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def against_plain(engines: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: how perplexity and tokens/s of each recipe stand to those of the plain weights; nothing without both.

    `engines` has, by the engines' names, what the parts perplexity, load and bench found (`asdict` of a report).
    """
    plain = engines.get(PLAIN)
    others = {name: engine for name, engine in engines.items() if name != PLAIN}
    if plain is None or not others:
        return
    rows = [row for name, engine in others.items() for row in _rows(name, engine, plain)]
    if not rows:
        return
    yield from (
        "",
        f"## Against {PLAIN}",
        "",
        f"| engine | figure | {PLAIN} | its own | ratio |",
        "|---|---|---|---|---|",
    )
    for name, what, before, after in rows:
        yield f"| {name} | {what} | {before:.4g} | {after:.4g} | {after / before:.3f} |"


def _rows(name: str, engine: Mapping[str, Any], plain: Mapping[str, Any]) -> Iterator[tuple[str, str, float, float]]:
    ours, theirs = _figures(engine), _figures(plain)
    for what, value in ours.items():
        if theirs.get(what):
            yield name, what, theirs[what], value


def _figures(engine: Mapping[str, Any]) -> dict[str, float]:
    """Everything that recipes are compared by, in the order of the table."""
    bench, found = engine.get("bench") or {}, {}
    if (engine.get("perplexity") or {}).get("measured"):
        found["perplexity"] = float(engine["perplexity"]["measured"])
    if bench.get("weights_gb"):
        found["GB of weights a step"] = float(bench["weights_gb"])
    for level in (engine.get("load") or {}).get("levels", ()):
        found[f"tokens/s at {level['value']:g}"] = float(level["tokens_per_s"])
    for level in bench.get("levels", ()):
        found[f"tokens/s at {level['concurrency']}, bare"] = float(level["vllm_tokens_per_s"])
    return found
