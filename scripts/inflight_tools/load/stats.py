"""Figures of a load test, computed from its requests. Pure.

Tokens are counted, never responses: under load one response carries several. Definitions:

- TTFT: from sending to the first response with a token.
- ITL (inter-token latency): the time between two responses divided by the tokens of the later one, once for each of
  these tokens; percentiles are over all tokens.
- TPOT (time per output token): per request, from its first response to its last, divided by the tokens after the first
  response.
- Latency: from sending to the last response.
- tokens/s and requests/s: what arrived within the steady interval, divided by its length; a request counts by the
  share of its tokens that arrived then. The interval begins when the first request after the warm-up is sent and ends
  when the load drops for good: with a fixed concurrency, when the requests in flight become fewer than that; with a
  request rate, when the last request is sent. A single wave, in which no request takes another's place, has no steady
  part: it is measured to its last end, else who answers all at the same time would be taken for faster.
- Goodput: requests/s times the share of requests that met every limit of the service-level objective.

A level is measured in one or more runs, each with prompts of its own: rates are means over the runs with a 95 %
confidence interval of the mean (Student's t), percentiles are over the requests of all runs.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from inflight_tools.common.resources import Sample, Usage, usage
from inflight_tools.load.profile_export import Request
from inflight_tools.load.quantiles import SHARES, Curves, quantiles

_NS_PER_MS = 1e6
_NS_PER_S = 1e9
# 97.5 % quantiles of Student's t with 1, 2, … degrees of freedom, and of the normal distribution.
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_NORMAL975 = 1.96


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of a distribution of times in milliseconds."""

    p50: float
    p90: float
    p99: float
    mean: float

    @classmethod
    def of(cls, values_ns: Sequence[float], weights: Sequence[int] | None = None) -> Percentiles:
        """Of nanoseconds, each `weights` times; all NaN for none. A percentile is one of the values (nearest rank)."""
        if not values_ns:
            return cls(math.nan, math.nan, math.nan, math.nan)
        values = np.asarray(values_ns, dtype=float) / _NS_PER_MS
        counts = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
        order = np.argsort(values)
        values, ranks = values[order], np.cumsum(counts[order])
        p50, p90, p99 = (float(values[np.searchsorted(ranks, share * ranks[-1] - 1e-9)]) for share in (0.5, 0.9, 0.99))
        return cls(p50, p90, p99, float(np.dot(values, counts[order]) / ranks[-1]))


@dataclass(frozen=True, slots=True)
class Objective:
    """A service-level objective: the most milliseconds that a request may take; None where there is no limit."""

    ttft: float | None = None
    tpot: float | None = None
    latency: float | None = None

    def met(self, request: Request) -> bool:
        """Whether a request kept every limit."""
        if request.ttft is None:
            return False
        found = ((self.ttft, request.ttft), (self.tpot, time_per_token(request)), (self.latency, request.latency))
        return all(limit is None or value is None or value / _NS_PER_MS <= limit for limit, value in found)


@dataclass(frozen=True, slots=True)
class Run:
    """What one run gave: requests by the time they were sent, how many of the first are warm-up, resource samples."""

    requests: Sequence[Request]
    warmup: int
    samples: Sequence[Sample] = ()

    @property
    def measured(self) -> Sequence[Request]:
        """The requests after the warm-up."""
        return self.requests[self.warmup :]


@dataclass(frozen=True, slots=True)
class RunResult:
    """Rates and medians of one run; times in milliseconds unless named otherwise."""

    requests: int
    tokens: int
    steady_s: float
    requests_per_s: float
    tokens_per_s: float
    goodput_requests_per_s: float
    ttft_p50: float
    itl_p50: float
    tpot_p50: float
    latency_p50: float
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class LevelResult:
    """One level of load over its runs; rates are means of the runs. Times in milliseconds unless named otherwise."""

    load: str  # such as "concurrency 16" or "4 requests/s"
    value: float  # the concurrency or the rate
    requests: int  # measured, the warm-up not counted
    tokens: int  # of these
    prompt_tokens: float  # mean
    requests_per_s: float
    tokens_per_s: float
    tokens_per_s_ci95: float | None  # half the width of the interval; None for a single run
    tokens_per_response: float
    goodput_requests_per_s: float
    good_share: float  # of the requests
    ttft: Percentiles
    itl: Percentiles
    tpot: Percentiles
    latency: Percentiles
    cost_per_1000_tokens: float | None  # in the currency of the price per hour
    usage: Usage | None  # mean of the runs, the most of their memory
    runs: list[RunResult]
    curves: Curves = field(default_factory=Curves)  # whole distributions over the requests of all runs

    def to_json(self) -> dict[str, Any]:
        """Nested: each distribution is an object with p50, p90, p99 and mean."""
        return asdict(self)

    def to_row(self) -> dict[str, Any]:
        """Flat, for CSV: ttft_p50_ms and so on; without the single runs and the distributions."""
        row: dict[str, Any] = {}
        for name, value in asdict(self).items():
            if name in ("ttft", "itl", "tpot", "latency"):
                row.update({f"{name}_{part}_ms": number for part, number in value.items()})
            elif name == "usage":
                row.update(value or dict.fromkeys(Usage.__dataclass_fields__))
            elif name not in ("runs", "curves"):
                row[name] = value
        return row


def summarize(
    load: str,
    value: float,
    runs: Sequence[Run],
    concurrency: int | None,
    objective: Objective | None = None,
    price_per_hour: float | None = None,
) -> LevelResult:
    """Figures of one level. `concurrency` is the fixed number of requests in flight, None for a request rate."""
    objective = objective or Objective()
    results = [summarize_run(run, concurrency, objective) for run in runs]
    measured = [request for run in runs for request in run.measured]
    gaps, weights = _between(measured)
    responses = sum(len(request.arrivals) for request in measured)
    tokens = sum(request.tokens for request in measured)
    speeds = [result.tokens_per_s for result in results]
    tokens_per_s = statistics.fmean(speeds)
    ttfts = [request.ttft for request in measured if request.ttft is not None]
    latencies = [request.latency for request in measured]
    return LevelResult(
        load=load,
        value=value,
        requests=len(measured),
        tokens=tokens,
        prompt_tokens=statistics.fmean(request.prompt_tokens for request in measured),
        requests_per_s=statistics.fmean(result.requests_per_s for result in results),
        tokens_per_s=tokens_per_s,
        tokens_per_s_ci95=half_width(speeds),
        tokens_per_response=tokens / responses if responses else 0.0,
        goodput_requests_per_s=statistics.fmean(result.goodput_requests_per_s for result in results),
        good_share=sum(map(objective.met, measured)) / len(measured),
        ttft=Percentiles.of(ttfts),
        itl=Percentiles.of(gaps, weights),
        tpot=Percentiles.of([time for time in map(time_per_token, measured) if time is not None]),
        latency=Percentiles.of(latencies),
        cost_per_1000_tokens=price_per_hour / 3.6 / tokens_per_s
        if price_per_hour is not None and tokens_per_s
        else None,
        usage=_mean_usage([result.usage for result in results if result.usage is not None]),
        runs=results,
        curves=Curves(SHARES, quantiles(ttfts), quantiles(gaps, weights), quantiles(latencies)),
    )


def summarize_run(run: Run, concurrency: int | None, objective: Objective) -> RunResult:
    """Figures of one run."""
    start, end = steady_interval(run.requests, run.warmup, concurrency)
    seconds = (end - start) / _NS_PER_S
    within = [sum(tokens for at, tokens in request.arrivals if start < at <= end) for request in run.requests]
    answered = sum(tokens / request.tokens for tokens, request in zip(within, run.requests, strict=True) if tokens)
    measured = run.measured
    good = sum(map(objective.met, measured)) / len(measured)
    gaps, weights = _between(measured)
    return RunResult(
        requests=len(measured),
        tokens=sum(request.tokens for request in measured),
        steady_s=seconds,
        requests_per_s=answered / seconds,
        tokens_per_s=sum(within) / seconds,
        goodput_requests_per_s=good * answered / seconds,
        ttft_p50=Percentiles.of([request.ttft for request in measured if request.ttft is not None]).p50,
        itl_p50=Percentiles.of(gaps, weights).p50,
        tpot_p50=Percentiles.of([time for time in map(time_per_token, measured) if time is not None]).p50,
        latency_p50=Percentiles.of([request.latency for request in measured]).p50,
        usage=usage(run.samples, start, end, sum(within)),
    )


def steady_interval(requests: Sequence[Request], warmup: int, concurrency: int | None) -> tuple[int, int]:
    """(start, end) in nanoseconds, as the module's text defines them."""
    start = requests[warmup].sent
    if concurrency is None:
        return start, max(requests[-1].sent, requests[warmup].ended)
    # Once the last request has been sent, the load drops with the first end of any request that is in flight then.
    last_sent = requests[-1].sent
    if all(request.ended > last_sent for request in requests[warmup:]):
        return start, max(request.ended for request in requests)
    return start, min(request.ended for request in requests if request.ended > last_sent)


def time_per_token(request: Request) -> float | None:
    """TPOT in nanoseconds; None for an answer in one response."""
    arrivals = request.arrivals
    if len(arrivals) < 2:
        return None
    return (arrivals[-1][0] - arrivals[0][0]) / (request.tokens - arrivals[0][1])


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % confidence interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    return t975(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def t975(degrees: float) -> float:
    """The 97.5 % quantile of Student's t; between whole degrees of freedom it is interpolated."""
    whole = max(int(degrees), 1)
    if whole >= len(_T975):
        # Two terms of the Cornish–Fisher expansion: within 0.7 % from 15 degrees on.
        return _NORMAL975 + (_NORMAL975**3 + _NORMAL975) / (4 * degrees)
    low, high = _T975[whole - 1], _T975[whole]
    return low + (high - low) * max(degrees - whole, 0.0)


def _between(requests: Sequence[Request]) -> tuple[list[float], list[int]]:
    """Inter-token gaps in nanoseconds, and how many tokens each stands for."""
    gaps: list[float] = []
    weights: list[int] = []
    for request in requests:
        for (before, _), (at, tokens) in itertools.pairwise(request.arrivals):
            gaps.append((at - before) / tokens)
            weights.append(tokens)
    return gaps, weights


def _mean_usage(several: Sequence[Usage]) -> Usage | None:
    if not several:
        return None
    percents = [each.gpu_percent for each in several if each.gpu_percent is not None]
    memories = [each.gpu_memory for each in several if each.gpu_memory is not None]
    return Usage(
        cpu_cores=statistics.fmean(each.cpu_cores for each in several),
        cpu_s_per_1000_tokens=statistics.fmean(each.cpu_s_per_1000_tokens for each in several),
        memory=max(each.memory for each in several),
        gpu_percent=statistics.fmean(percents) if percents else None,
        gpu_memory=max(memories) if memories else None,
    )
