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
  request rate, when the last request is sent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from _profile_export import Request

_NS_PER_MS = 1e6
_NS_PER_S = 1e9


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
class LevelResult:
    """One level of load. Times in milliseconds unless named otherwise."""

    load: str  # such as "concurrency 16" or "4 requests/s"
    requests: int  # measured, the warm-up not counted
    tokens: int  # of these
    prompt_tokens: float  # mean
    steady_s: float
    requests_per_s: float
    tokens_per_s: float
    tokens_per_response: float
    ttft: Percentiles
    itl: Percentiles
    tpot: Percentiles
    latency: Percentiles

    def to_json(self) -> dict[str, Any]:
        """Nested: each distribution is an object with p50, p90, p99 and mean."""
        return asdict(self)

    def to_row(self) -> dict[str, Any]:
        """Flat, for CSV: ttft_p50_ms and so on."""
        row: dict[str, Any] = {}
        for name, value in asdict(self).items():
            if isinstance(value, dict):
                row.update({f"{name}_{part}_ms": number for part, number in value.items()})
            else:
                row[name] = value
        return row


def summarize(load: str, requests: Sequence[Request], warmup: int, concurrency: int | None) -> LevelResult:
    """Figures of one level; `requests` by the time they were sent, the first `warmup` of them not measured.

    `concurrency` is the fixed number of requests in flight, None for a request rate.
    """
    measured = requests[warmup:]
    start, end = steady_interval(requests, warmup, concurrency)
    seconds = (end - start) / _NS_PER_S
    within = [sum(tokens for at, tokens in request.arrivals if start < at <= end) for request in requests]
    answered = sum(tokens / request.tokens for tokens, request in zip(within, requests, strict=True) if tokens)
    gaps, weights, per_token = _between(measured)
    responses = sum(len(request.arrivals) for request in measured)
    tokens = sum(request.tokens for request in measured)
    return LevelResult(
        load=load,
        requests=len(measured),
        tokens=tokens,
        prompt_tokens=float(np.mean([request.prompt_tokens for request in measured])),
        steady_s=seconds,
        requests_per_s=answered / seconds,
        tokens_per_s=sum(within) / seconds,
        tokens_per_response=tokens / responses if responses else 0.0,
        ttft=Percentiles.of([request.ttft for request in measured if request.ttft is not None]),
        itl=Percentiles.of(gaps, weights),
        tpot=Percentiles.of(per_token),
        latency=Percentiles.of([request.latency for request in measured]),
    )


def steady_interval(requests: Sequence[Request], warmup: int, concurrency: int | None) -> tuple[int, int]:
    """(start, end) in nanoseconds, as the module's text defines them."""
    start = requests[warmup].sent
    if concurrency is None:
        return start, max(requests[-1].sent, requests[warmup].ended)
    # Once the last request has been sent, the load drops with the first end of any request that is in flight then.
    last_sent = requests[-1].sent
    return start, min(request.ended for request in requests if request.ended > last_sent)


def _between(requests: Sequence[Request]) -> tuple[list[float], list[int], list[float]]:
    """(inter-token gaps, how many tokens each stands for, time per output token of each request), in nanoseconds."""
    gaps: list[float] = []
    weights: list[int] = []
    per_token: list[float] = []
    for request in requests:
        arrivals = request.arrivals
        for (before, _), (at, tokens) in itertools.pairwise(arrivals):
            gaps.append((at - before) / tokens)
            weights.append(tokens)
        if len(arrivals) > 1:
            per_token.append((arrivals[-1][0] - arrivals[0][0]) / (request.tokens - arrivals[0][1]))
    return gaps, weights, per_token
