"""The gateway's metrics (names: contract, docs/gateway.md). Of several workers each answers with the sum of all."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

SHARED = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own name: where workers keep what they have counted
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Times:
    """A histogram of seconds for the one thread of the event loop: a tenth of what the library's locks cost.

    `observe` is called for every response of every stream.
    """

    def __init__(self, name: str, help_: str, bounds: Sequence[float], registry: CollectorRegistry) -> None:
        self._name, self._help = name, help_
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect.bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """As the registry asks for it."""
        names = [*(f"{float(bound)}" for bound in self._bounds), "+Inf"]
        yield HistogramMetricFamily(
            self._name, self._help, list(zip(names, accumulate(self._counts), strict=True)), self._sum
        )


def _histogram(name: str, help_: str, bounds: Sequence[float], registry: CollectorRegistry) -> Times | Histogram:
    """Of several workers the library's own, which all can read: its price is paid where one process is not enough."""
    if SHARED in os.environ:
        return Histogram(name, help_, buckets=bounds, registry=registry)
    return Times(name, help_, bounds, registry)


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "inflight_gateway_requests", "Requests that ended.", ("route", "status"), registry=registry
        )
        self.first_token = _histogram(
            "inflight_gateway_time_to_first_token_seconds", "Until the first text.", _SECONDS, registry
        )
        self.between = _histogram(
            "inflight_gateway_inter_token_latency_seconds", "Between responses, by their tokens.", _BETWEEN, registry
        )
        self.tokens = Counter("inflight_gateway_tokens", "Tokens.", ("kind",), registry=registry)
        self.in_flight = Gauge(
            "inflight_gateway_requests_in_flight", "Requests under way.", registry=registry, multiprocess_mode="livesum"
        )
        self.ignored = Counter(
            "inflight_gateway_ignored_fields", "Fields that clients sent and nobody here knows.", registry=registry
        )
        self.cancelled = Counter("inflight_gateway_cancelled", "Requests whose client left.", registry=registry)

    def text(self) -> bytes:
        """Prometheus' text."""
        if SHARED not in os.environ:
            return generate_latest(self._registry)
        merged = CollectorRegistry()
        MultiProcessCollector(merged)  # type: ignore[no-untyped-call]
        return generate_latest(merged)
