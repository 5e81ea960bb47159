"""Metrics, aggregated here and flushed at an interval: their cost to the server does not grow with traffic.

Every metric call into Triton is a round trip of 36 to 50 µs [24.10], so nothing is told to Triton per token or per
request. Distributions are counter families named `X_bucket{le}`, `X_sum` and `X_count`, which Prometheus reads as a
histogram. Pure, but for the lock and the thread `inflight-metrics` that flushes (started and stopped by `Flusher`).
"""

from __future__ import annotations

import bisect
import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from inflight.engine_process.supervisor import Loss

log = logging.getLogger("inflight.metrics")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
OUTCOMES = ("stop", "length", "cancelled", "deadline", "invalid", "unsupported", "unavailable", "internal")


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """One metric family. `kind` is counter, gauge, distribution, or info: a gauge that is 1 for the present values of
    `labels` and 0 for former ones. `label` is the one label of the others besides model and version.
    """

    name: str
    kind: str
    help: str
    label: str = ""
    values: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


Label = str | tuple[str, ...]  # the value of a family's label, or the values of an info's labels
_Key = tuple[str, Label]

FAMILIES: tuple[Family, ...] = (
    Family(
        "nv_trt_llm_request_metrics",
        "gauge",
        "Requests by state, under the names that llm-d's endpoint picker and Kubernetes' gateway extension scrape; "
        "active and scheduled are both those in the engine",
        "request_type",
        ("waiting", "active", "scheduled", "max"),
    ),
    Family(
        "nv_trt_llm_kv_cache_block_metrics",
        "gauge",
        "KV-cache blocks, under the name that the same programs scrape",
        "kv_cache_block_type",
        ("max", "used", "free", "tokens_per", "fraction", "reserved"),
    ),
    Family("inflight_requests_total", "counter", "Requests by how they ended", "outcome", OUTCOMES),
    Family("inflight_prompt_tokens_total", "counter", "Prompt tokens of requests that got their first token"),
    Family("inflight_generation_tokens_total", "counter", "Generated tokens"),
    Family("inflight_requests_running", "gauge", "Requests in the engine"),
    Family("inflight_requests_waiting", "gauge", "Requests in the queue, and those whose prompts wait to be read"),
    Family("inflight_kv_cache_usage_ratio", "gauge", "Share of the KV-cache blocks that running requests hold, 0 to 1"),
    Family("inflight_prefix_cache_hit_tokens_total", "counter", "Prompt tokens that were not computed again"),
    Family("inflight_queue_time_seconds", "distribution", "From arrival to the start in the engine", bounds=_SECONDS),
    Family("inflight_time_to_first_token_seconds", "distribution", "From arrival to the first token", bounds=_SECONDS),
    Family(
        "inflight_inter_token_latency_seconds",
        "distribution",
        "Time between two responses of a stream divided by the tokens of the second, counted once per token",
        bounds=(0.0005, *_SECONDS[:12]),
    ),
    Family("inflight_request_latency_seconds", "distribution", "From arrival to the last response", bounds=_SECONDS),
    Family(
        "inflight_tokens_per_response",
        "distribution",
        "Tokens that one streamed response carries",
        bounds=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0),
    ),
    Family(
        "inflight_oldest_waiting_seconds",
        "gauge",
        "How long the oldest request that is not in the engine yet has been here; 0 when none waits",
    ),
    Family(
        "inflight_limit",
        "gauge",
        "What this model takes at most: sequences in the engine, requests and prompt tokens in the queue, tokens of "
        "prompt and answer; 0 is no limit",
        "kind",
        ("running", "queue_requests", "queue_tokens", "context_tokens"),
    ),
    Family("inflight_engine_up", "gauge", "1 while the engine takes requests"),
    Family("inflight_draining", "gauge", "1 from the order to drain until it is taken back"),
    Family("inflight_engine_restarts_total", "counter", "How often the engine process was started again"),
    Family(
        "inflight_last_restart",
        "gauge",
        "When an engine was last given up for this reason, as Unix time in seconds; 0: never",
        "reason",
        tuple(loss.value for loss in Loss),
    ),
    Family(
        "inflight_build_info",
        "info",
        "1 while it serves: the release of Inflight, the engine, and the engine directory's source and quantization",
        labels=("release", "engine", "engine_version", "source", "quantization"),
    ),
    Family("inflight_price_per_hour", "gauge", "The model parameter of that name; 0: not known"),
    Family(
        "inflight_speculative_tokens_total",
        "counter",
        "Tokens of speculative decoding",
        "kind",
        ("draft", "accepted"),
    ),
)
_BY_NAME = {family.name: family for family in FAMILIES}


class Sink(Protocol):
    """Where flushed values go. One call is one round trip."""

    def add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
        """Increase a counter."""

    def set(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Set a gauge."""


class _Distribution:
    """Counts per bucket (the last one is everything above), and the sum."""

    __slots__ = ("counts", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.total = 0.0


class Metrics:
    """What has happened so far. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[_Key, float] = {}
        self._gauges: dict[_Key, float] = {}
        self._distributions = {
            family.name: _Distribution(len(family.bounds) + 1) for family in FAMILIES if family.kind == "distribution"
        }
        self._flushed: dict[_Key, float] = {}
        for family in FAMILIES:
            for value in family.values or ("",):
                if family.kind == "counter":
                    self._counters[family.name, value] = 0.0
                elif family.kind == "gauge":  # an info has nothing to say yet
                    self._gauges[family.name, value] = 0.0

    def add(self, name: str, amount: float = 1.0, label: str = "") -> None:
        """Increase a counter."""
        with self._lock:
            self._counters[name, label] += amount

    def raise_to(self, name: str, total: float, label: str = "") -> None:
        """Bring a counter up to a total that is kept elsewhere; a lower total changes nothing."""
        with self._lock:
            self._counters[name, label] = max(self._counters[name, label], total)

    def set(self, name: str, value: float, label: str = "") -> None:
        """Set a gauge."""
        with self._lock:
            self._gauges[name, label] = value

    def describe(self, name: str, values: tuple[str, ...] | None) -> None:
        """Set an info to these values of its labels, in their order; what it said before becomes 0."""
        with self._lock:
            for key in self._gauges:
                if key[0] == name:
                    self._gauges[key] = 0.0
            if values is not None:
                self._gauges[name, values] = 1.0

    def observe(self, name: str, value: float, count: int = 1) -> None:
        """Put `count` observations of `value` into a distribution."""
        place = bisect.bisect_left(_BY_NAME[name].bounds, value)
        with self._lock:
            distribution = self._distributions[name]
            distribution.counts[place] += count
            distribution.total += value * count

    def flush(self, sink: Sink, unknown: frozenset[str] = frozenset(), *, distributions: bool = True) -> None:
        """Tell `sink` what has changed since the last flush. Families in `unknown` (the engine does not know) are
        left out, and so are distributions where they are not asked for.
        """
        with self._lock:
            counters = {key: value for key, value in self._counters.items() if key[0] not in unknown}
            gauges = {key: value for key, value in self._gauges.items() if key[0] not in unknown}
            if distributions:
                counters.update(self._distribution_counters())
        for (name, label), value in counters.items():
            change = value - self._flushed.get((name, label), 0.0)
            if change > 0.0 or (name, label) not in self._flushed:
                sink.add(name, _labels(name, label), change)
                self._flushed[name, label] = value
        for (name, label), value in gauges.items():
            if value != self._flushed.get((name, label)):
                sink.set(name, _labels(name, label), value)
                self._flushed[name, label] = value

    def _distribution_counters(self) -> dict[_Key, float]:
        """The distributions as cumulative counters. Holds the lock."""
        counters: dict[_Key, float] = {}
        for name, distribution in self._distributions.items():
            below = 0
            bounds = [*map(_bound_text, _BY_NAME[name].bounds), "+Inf"]
            for bound, count in zip(bounds, distribution.counts, strict=True):
                below += count
                counters[f"{name}_bucket", bound] = below
            counters[f"{name}_sum", ""] = distribution.total
            counters[f"{name}_count", ""] = below
        return counters


def _bound_text(bound: float) -> str:
    return f"{bound:g}"


def _labels(name: str, value: Label) -> dict[str, str]:
    if isinstance(value, tuple):
        return dict(zip(_BY_NAME[name].labels, value, strict=True))
    if name.endswith("_bucket"):
        return {"le": value}
    family = _BY_NAME.get(name)
    return {family.label: value} if family is not None and family.label else {}


def exported() -> list[tuple[str, str, str]]:
    """(name, counter or gauge, help) of every family as Triton sees it."""
    families = []
    for family in FAMILIES:
        if family.kind == "distribution":
            families += [(f"{family.name}{suffix}", "counter", family.help) for suffix in ("_bucket", "_sum", "_count")]
        else:
            families.append((family.name, "gauge" if family.kind == "info" else family.kind, family.help))
    return families


class Flusher:
    """Calls `flush` every `interval_s` and once more at the end; never twice at the same time."""

    def __init__(self, flush: Callable[[], None], interval_s: float) -> None:
        self._flush = flush
        self._interval = interval_s
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="inflight-metrics", daemon=True)

    def start(self) -> None:
        """Start flushing."""
        self._thread.start()

    def now(self) -> None:
        """Flush at once. Never raises."""
        with self._lock:
            try:
                self._flush()
            except Exception:
                log.exception("flushing metrics failed")

    def stop(self, timeout_s: float) -> None:
        """Flush once more and end the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(self._interval)
            self.now()
