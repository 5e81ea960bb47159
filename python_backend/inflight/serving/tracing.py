"""Sends spans of ended requests to whoever collects them, beside the serving path.

The thread that ends a request puts a few numbers into a bounded queue, if whoever began its trace wants it recorded
(parent-based sampling: nothing is decided here). Thread `inflight-spans`, started here and ended by `stop`, makes spans
of them and exports them; what does not fit, or cannot be sent, is counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from inflight.identity import Trace
from inflight.serving.aside import Aside
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
        self._complained = -COMPLAIN_S
        self._lock = threading.Lock()  # of the counts
        self.sent = 0  # spans
        self.dropped = 0
        self._aside: Aside[tuple[Ended, int]] = Aside(
            "inflight-spans", self._export, most_waiting=most_waiting, most_at_once=MOST_AT_ONCE, delay_s=DELAY_S
        )

    def __call__(self, ended: Ended) -> None:
        """One request has ended."""
        trace = ended.identity.trace
        if trace is None or not trace.sampled:
            return
        if not self._aside.put((ended, time.time_ns() - time.monotonic_ns())):
            with self._lock:
                self.dropped += how_many(ended)

    def state(self) -> dict[str, int]:
        """For operators."""
        return {"spans_sent": self.sent, "spans_dropped": self.dropped}

    def stop(self, timeout_s: float) -> None:
        """Send what waits, for at most `timeout_s`, and end the thread. A second time it does nothing."""
        if self._aside.stop(timeout_s):
            self._exporter.shutdown()

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
