"""The access log: one line of JSON for each request that has ended. Never a word of a prompt or an answer.

On where the environment variable INFLIGHT_ACCESS_LOG is 1; it goes where the server's log goes, under the name
`inflight.access`.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence

from inflight.serving.aside import Aside
from inflight.serving.ended import Ended

log = logging.getLogger("inflight.access")
ON = "INFLIGHT_ACCESS_LOG"
MOST_WAITING = 16_384  # requests
MOST_AT_ONCE = 256
DELAY_S = 0.25


class AccessLog:
    """Writes the lines on thread `inflight-access`: a log that nobody reads must keep no stream."""

    def __init__(self, model: str, most_waiting: int = MOST_WAITING) -> None:
        """Start the thread."""
        self._model = model
        self._lock = threading.Lock()  # of the counts
        self._written = 0
        self._lost = 0
        self._aside: Aside[Ended] = Aside(
            "inflight-access", self._write, most_waiting=most_waiting, most_at_once=MOST_AT_ONCE, delay_s=DELAY_S
        )

    def __call__(self, ended: Ended) -> None:
        """One request has ended."""
        if not self._aside.put(ended):
            with self._lock:
                self._lost += 1

    def _write(self, batch: Sequence[Ended]) -> None:
        for ended in batch:
            log.info("%s", line_of(self._model, ended))
        self._written += len(batch)

    def state(self) -> dict[str, int]:
        """For operators."""
        return {"access_log_lines": self._written, "access_log_lost": self._lost}

    def stop(self, timeout_s: float) -> None:
        """Write what waits, for at most `timeout_s`."""
        self._aside.stop(timeout_s)


def line_of(model: str, ended: Ended) -> str:
    """One request. Times are milliseconds from its arrival, null where it did not come so far."""
    timing, trace = ended.timing, ended.identity.trace

    def since_arrival(at_ns: int) -> float | None:
        return round((at_ns - timing.arrival_ns) / 1e6, 3) if at_ns else None

    return json.dumps(
        {
            "id": ended.identity.id,
            "trace": trace.trace_id if trace is not None else None,
            "engine_id": ended.engine_number or None,
            "model": model,
            "status": ended.status,
            "finish": ended.finish or None,
            "tokens_in": ended.input_tokens,
            "tokens_out": ended.output_tokens,
            "queue_ms": since_arrival(timing.scheduled_ns),
            "ttft_ms": since_arrival(timing.first_token_ns),
            "duration_ms": since_arrival(ended.ended_ns),
        }
    )
