"""The gateway's metrics (names: contract, docs/gateway.md)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "inflight_gateway_requests", "Requests that ended.", ("route", "status"), registry=registry
        )
        self.first_token = Histogram(
            "inflight_gateway_time_to_first_token_seconds", "Until the first text.", buckets=_SECONDS, registry=registry
        )
        self.between = Histogram(
            "inflight_gateway_inter_token_latency_seconds", "Between responses, by their tokens.", buckets=_BETWEEN,
            registry=registry,
        )  # fmt: skip
        self.tokens = Counter("inflight_gateway_tokens", "Tokens.", ("kind",), registry=registry)
        self.in_flight = Gauge("inflight_gateway_requests_in_flight", "Requests under way.", registry=registry)
        self.cancelled = Counter("inflight_gateway_cancelled", "Requests whose client left.", registry=registry)

    def text(self) -> bytes:
        """Prometheus' text."""
        return generate_latest(self._registry)
