"""What the metrics say about requests and the engine: which event counts where, and the gauges of the moment."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping

import msgspec

from inflight.answer.stream import Stream, Timing
from inflight.engines.base import Capability, EngineInfo, EngineStats
from inflight.errors import ErrorCode, RequestError
from inflight.identity import Identity
from inflight.serving.ended import Ended, ended_stream
from inflight.serving.metrics import Metrics, Sink

log = logging.getLogger("inflight.metrics")

# Under load every flush changes some sixty counters of distributions, and each is a round trip to the server. While
# requests run they are told this rarely; a scrape comes every few seconds at most.
DISTRIBUTIONS_S = 3.0

_OUTCOMES = {code.value: code.value for code in ErrorCode} | {
    ErrorCode.INVALID_ARG.value: "invalid",
    "tool_calls": "stop",  # the model came to its end, whatever it wrote
}


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """The numbers of one moment. `live_tokens` are those generated for streams that have not ended, `oldest_waiting_s`
    is the age of the oldest request that is not in the engine yet. `limits` are by their kind, `losses` by the reason
    of a restart (Unix time of the last). `build` has the values of `inflight_build_info`; None where nothing
    serves: Triton goes on showing the last values of a model that was unloaded.
    """

    info: EngineInfo | None
    stats: EngineStats
    up: bool
    draining: bool
    restarts: int
    losses: Mapping[str, float]
    limits: Mapping[str, int]
    build: tuple[str, ...] | None
    waiting: int
    oldest_waiting_s: float
    running: int
    blocks_reserved: int
    live_tokens: int


class EngineLives:
    """What the engine says of itself, with its totals over all its lives: every engine process counts from 0.

    A life's last word is what counts of it; a word that comes after its end, from a link that is about to be closed,
    is not heard. Any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._past = EngineStats()
        self._now = EngineStats()
        self._alive = False

    def began(self) -> None:
        """An engine is ready."""
        with self._lock:
            self._alive = True

    def said(self, stats: EngineStats) -> None:
        """The engine's latest statistics."""
        with self._lock:
            if self._alive:
                self._now = stats

    def ended(self) -> None:
        """The engine is gone, and with it all that it held."""
        with self._lock:
            self._past, self._now, self._alive = _totals(self._past, self._now), EngineStats(), False

    def stats(self) -> EngineStats:
        """The living engine's statistics, with the totals of all lives."""
        with self._lock:
            sums, now = _totals(self._past, self._now), self._now
        return msgspec.structs.replace(
            now,
            reused_tokens_total=sums.reused_tokens_total,
            draft_tokens_total=sums.draft_tokens_total,
            accepted_tokens_total=sums.accepted_tokens_total,
        )


def _totals(one: EngineStats, other: EngineStats) -> EngineStats:
    return EngineStats(
        reused_tokens_total=_sum(one.reused_tokens_total, other.reused_tokens_total),
        draft_tokens_total=_sum(one.draft_tokens_total, other.draft_tokens_total),
        accepted_tokens_total=one.accepted_tokens_total + other.accepted_tokens_total,
    )


def _sum(one: int | None, other: int | None) -> int | None:
    """Of what is known."""
    return other if one is None else one if other is None else one + other


class Observation:
    """Turns ends of requests and snapshots into metrics, and tells `listeners` of every end; they must not block."""

    def __init__(self, metrics: Metrics, snapshot: Callable[[], Snapshot], price_per_hour: float = 0.0) -> None:
        metrics.set("inflight_price_per_hour", price_per_hour)
        self._metrics = metrics
        self._snapshot = snapshot
        self._lock = threading.Lock()
        self._tokens_of_ended = 0
        self._told_at = -DISTRIBUTIONS_S  # when the distributions were last told
        self.listeners: tuple[Callable[[Ended], None], ...] = ()
        self.sink: Sink | None = None  # where flushes go, once Triton's metrics are there

    def refused(self, error: RequestError, identity: Identity, arrival_ns: int) -> None:
        """A request that arrived then (monotonic) ended before it became a stream."""
        self._metrics.add("inflight_requests_total", label=_OUTCOMES[error.code.value])
        if self.listeners:
            self._tell(Ended(identity, error.code.value, Timing(arrival_ns), time.monotonic_ns()))

    def stream_ended(self, stream: Stream, engine_number: int) -> None:
        """A stream has had its terminal response; the engine calls it by that number."""
        metrics, timing, now_ns = self._metrics, stream.timing, time.monotonic_ns()
        metrics.add("inflight_requests_total", label=_OUTCOMES.get(stream.outcome, stream.outcome))
        metrics.observe("inflight_request_latency_seconds", (now_ns - timing.arrival_ns) / 1e9)
        if timing.scheduled_ns:
            metrics.observe("inflight_queue_time_seconds", (timing.scheduled_ns - timing.arrival_ns) / 1e9)
        if timing.first_token_ns:
            metrics.observe("inflight_time_to_first_token_seconds", (timing.first_token_ns - timing.arrival_ns) / 1e9)
            metrics.add("inflight_prompt_tokens_total", stream.num_input_tokens)
        with self._lock:
            self._tokens_of_ended += stream.output_tokens
        if self.listeners:
            self._tell(ended_stream(stream, engine_number, now_ns))

    def _tell(self, ended: Ended) -> None:
        for listener in self.listeners:
            try:
                listener(ended)
            except Exception:
                log.exception("request %s: its end could not be told", ended.identity)

    def flush(self) -> None:
        """Bring the gauges up to date and tell the sink."""
        with self._lock:
            tokens_of_ended = self._tokens_of_ended  # first: a stream that ends meanwhile must not be counted twice
        metrics, now = self._metrics, self._snapshot()
        stats, info = now.stats, now.info
        metrics.set("inflight_requests_running", now.running)
        metrics.set("inflight_requests_waiting", now.waiting)
        metrics.set("inflight_engine_up", float(now.up))
        metrics.set("inflight_draining", float(now.draining))
        metrics.set("inflight_oldest_waiting_seconds", now.oldest_waiting_s)
        metrics.raise_to("inflight_engine_restarts_total", now.restarts)
        for reason, at in now.losses.items():
            metrics.set("inflight_last_restart", at, reason)
        for kind, most in now.limits.items():
            metrics.set("inflight_limit", most, kind)
        metrics.describe("inflight_build_info", now.build)
        metrics.raise_to("inflight_generation_tokens_total", tokens_of_ended + now.live_tokens)
        most_running = info.max_running if info is not None else 0
        for kind, value in (
            ("waiting", now.waiting),
            ("active", now.running),
            ("scheduled", now.running),
            ("max", most_running),
        ):
            metrics.set("nv_trt_llm_request_metrics", value, kind)
        self._set_blocks(now)
        unknown = set()
        if stats.reused_tokens_total is None:
            unknown.add("inflight_prefix_cache_hit_tokens_total")
        else:
            metrics.raise_to("inflight_prefix_cache_hit_tokens_total", stats.reused_tokens_total)
        if info is None or Capability.SPECULATIVE not in info.capabilities or stats.draft_tokens_total is None:
            unknown.add("inflight_speculative_tokens_total")
        else:
            metrics.raise_to("inflight_speculative_tokens_total", stats.draft_tokens_total, "draft")
            metrics.raise_to("inflight_speculative_tokens_total", stats.accepted_tokens_total, "accepted")
        if self.sink is not None:
            metrics.flush(self.sink, frozenset(unknown), distributions=self._tells_distributions(now))

    def _tells_distributions(self, now: Snapshot) -> bool:
        """At rest always: then the page says all that has happened."""
        at = time.monotonic()
        if now.running + now.waiting and at - self._told_at < DISTRIBUTIONS_S:
            return False
        self._told_at = at
        return True

    def _set_blocks(self, now: Snapshot) -> None:
        most = now.stats.blocks_max or (now.info.blocks_total if now.info is not None else 0)
        used = now.stats.blocks_used
        ratio = used / most if most else 0.0
        self._metrics.set("inflight_kv_cache_usage_ratio", ratio)
        for kind, value in (
            ("max", most),
            ("used", used),
            ("free", most - used),
            ("tokens_per", now.info.block_size if now.info is not None else 0),
            ("fraction", ratio),
            ("reserved", now.blocks_reserved),
        ):
            self._metrics.set("nv_trt_llm_kv_cache_block_metrics", value, kind)
