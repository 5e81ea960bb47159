"""Sends spans of ended requests to whoever collects them, beside the serving path.

The thread that ends a request puts a few numbers into a bounded queue, if whoever began its trace wants it recorded
(parent-based sampling: nothing is decided here). Thread `inflight-spans`, started here and ended by `stop`, makes spans
of them and exports them; what does not fit, or cannot be sent, is counted.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from inflight.identity import Trace
from inflight.serving.ended import Ended
from inflight.serving.spans import Span, how_many, spans_of

log = logging.getLogger("inflight.tracing")

ON = "INFLIGHT_TRACING"
MOST_WAITING = 4096  # requests
MOST_AT_ONCE = 256
DELAY_S = 1.0  # between two exports of what is not many
COMPLAIN_S = 60.0
Tree = tuple[Trace, tuple[Span, ...]]  # the trace, the request's span and its parts


class Exporter(Protocol):
    """Where spans go."""

    def export(self, trees: Sequence[Tree]) -> bool:
        """Send the spans of these requests; whether they have arrived. May block for seconds."""

    def shutdown(self) -> None:
        """Give up what is being sent, and send nothing more."""


class Tracing:
    """See the module's text. Callable from any thread."""

    def __init__(self, model: str, exporter: Exporter, most_waiting: int = MOST_WAITING) -> None:
        """Start the thread."""
        self._model = model
        self._exporter = exporter
        self._most = most_waiting
        self._waiting: collections.deque[tuple[Ended, int]] = collections.deque()
        self._lock = threading.Lock()  # of the counts and the queue's length
        self._wake = threading.Event()
        self._stopping = False
        self._complained = -COMPLAIN_S
        self.sent = 0  # spans
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="inflight-spans", daemon=True)
        self._thread.start()

    def __call__(self, ended: Ended) -> None:
        """One request has ended."""
        trace = ended.identity.trace
        if trace is None or not trace.sampled:
            return
        with self._lock:
            full = self._stopping or len(self._waiting) >= self._most
            if full:
                self.dropped += how_many(ended)
            else:
                self._waiting.append((ended, time.time_ns() - time.monotonic_ns()))
                many = len(self._waiting) >= MOST_AT_ONCE
        if not full and many:
            self._wake.set()

    def state(self) -> dict[str, int]:
        """For operators."""
        return {"spans_sent": self.sent, "spans_dropped": self.dropped}

    def stop(self, timeout_s: float) -> None:
        """Send what waits, for at most `timeout_s`, and end the thread. A second time it does nothing."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)
        self._exporter.shutdown()

    def _run(self) -> None:
        while True:
            self._wake.wait(DELAY_S)
            self._wake.clear()
            while self._waiting:
                self._export([self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_AT_ONCE))])
            if self._stopping and not self._waiting:
                return

    def _export(self, batch: Sequence[tuple[Ended, int]]) -> None:
        trees: list[Tree] = []
        for ended, to_unix_ns in batch:
            assert ended.identity.trace is not None
            trees.append((ended.identity.trace, spans_of(self._model, ended, to_unix_ns)))
        count = sum(len(spans) for _, spans in trees)
        try:
            arrived = self._exporter.export(trees)
        except Exception as error:  # noqa: BLE001 — a collector that is not there must cost nothing but its spans
            arrived = False
            self._complain(repr(error))
        else:
            if not arrived:
                self._complain("the collector does not take them")
        with self._lock:
            if arrived:
                self.sent += count
            else:
                self.dropped += count

    def _complain(self, why: str) -> None:
        now = time.monotonic()
        if now - self._complained >= COMPLAIN_S:
            self._complained = now
            log.warning("spans are lost, %d so far: %s", self.dropped, why)
