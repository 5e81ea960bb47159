"""What a load test found, in a sentence and a few large figures. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inflight_tools.load.compare import Ratio
from inflight_tools.load.settings import limits_in_words
from inflight_tools.load.stats import LevelResult
from inflight_tools.load.words import listed, number

_NEAR = 0.9  # of the most tokens per second


@dataclass(frozen=True, slots=True)
class Tile:
    """One large figure: what it is, its value and unit, and at which level with what beside it."""

    name: str
    value: str
    unit: str
    detail: str


def sentence(results: Sequence[LevelResult]) -> str:
    """What was measured."""
    runs = max(len(result.runs) for result in results)
    levels = [f"{result.value:g}" for result in results]
    how = "requests in flight" if results[0].load.startswith("concurrency") else "requests sent per second"
    if levels == ["1"]:
        how = how.replace("requests", "request", 1)
    turns = f", {runs} runs of each in turns" if runs > 1 and len(results) > 1 else f", {runs} runs" if runs > 1 else ""
    requests, tokens = (sum(getattr(result, name) for result in results) for name in ("requests", "tokens"))
    return (
        f"{listed(levels)} {how} over gRPC streaming{turns}: {requests:,} requests with {tokens:,} tokens of answer "
        "after the warm-up."
    )


def tiles(results: Sequence[LevelResult], limits: Mapping[str, float], ratios: Sequence[Ratio] = ()) -> list[Tile]:
    """The figures that matter most, as far as they were measured."""
    best = max(results, key=lambda result: result.tokens_per_s)
    spread = "" if best.tokens_per_s_ci95 is None else f" ± {number(best.tokens_per_s_ci95)} (95 %)"
    more = " at the only level" if len(results) == 1 else f" at {best.load}"
    found = [Tile("Most tokens", number(best.tokens_per_s), "tokens/s", f"{spread}{more}".strip())]
    answered = [result for result in results if math.isfinite(result.ttft.p50)]
    if answered:
        soonest = min(answered, key=lambda result: result.ttft.p50)
        detail = f"TTFT p50 at {soonest.load}; p99 {number(soonest.ttft.p99)} ms"
        found.append(Tile("Soonest first token", number(soonest.ttft.p50), "ms", detail))
    if limits:
        found.append(_within(results, limits))
    elif len(results) > 1:
        found.append(_near(results, best))
    priced = [result for result in results if result.cost_per_1000_tokens is not None]
    if priced:
        cheap = min(priced, key=lambda result: result.cost_per_1000_tokens or math.inf)
        found.append(Tile("Least cost of 1,000 tokens", f"{cheap.cost_per_1000_tokens:.2g}", "", f"at {cheap.load}"))
    compared = [ratio for ratio in ratios if ratio.figure == "tokens/s"]
    if compared:
        found.append(_over_the_other(next((each for each in compared if each.load == best.load), compared[-1])))
    return found


def _within(results: Sequence[LevelResult], limits: Mapping[str, float]) -> Tile:
    """The level with the most requests per second that keep every limit."""
    words = limits_in_words(limits)
    good = max(results, key=lambda result: result.goodput_requests_per_s)
    if not good.goodput_requests_per_s:
        return Tile("Within the limits", "none", "", f"no request kept {words}")
    detail = f"goodput at {good.load}: {100 * good.good_share:.0f} % of the requests kept {words}"
    return Tile("Within the limits", number(good.goodput_requests_per_s), "requests/s", detail)


def _near(results: Sequence[LevelResult], best: LevelResult) -> Tile:
    """The least level that is nearly as fast as the best, and what its first tokens take."""
    near = min(
        (result for result in results if result.tokens_per_s >= _NEAR * best.tokens_per_s),
        key=lambda result: result.value,
    )
    first = f"TTFT p99 at {near.load}"
    if near is best:
        return Tile("First token at that load", number(near.ttft.p99), "ms", first)
    share = 100 * near.tokens_per_s / best.tokens_per_s
    detail = f"{first}, which gives {share:.0f} % of the most tokens; {number(best.ttft.p99)} ms at {best.load}"
    return Tile("Nearly as fast, sooner", number(near.ttft.p99), "ms", detail)


def _over_the_other(ratio: Ratio) -> Tile:
    interval = "" if ratio.low is None or ratio.high is None else f" (95 %: {ratio.low:.2f} to {ratio.high:.2f})"
    return Tile(
        "Over the other test", f"{ratio.ratio:.2f}", "×", f"tokens/s at {ratio.load}{interval}: {ratio.verdict}"
    )
