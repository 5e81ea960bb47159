"""The access log: one line of JSON for each request that has ended. Never a word of a prompt or an answer.

On where the environment variable INFLIGHT_ACCESS_LOG is 1; it goes where the server's log goes, under the name
`inflight.access`.
"""

from __future__ import annotations

import json
import logging

from inflight.serving.ended import Ended

log = logging.getLogger("inflight.access")
ON = "INFLIGHT_ACCESS_LOG"


class AccessLog:
    """Writes the line. Called on the thread that ended the request."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._lines = 0  # about: two threads may write at once

    def __call__(self, ended: Ended) -> None:
        """One request has ended."""
        log.info("%s", line_of(self._model, ended))
        self._lines += 1

    def state(self) -> dict[str, int]:
        """For operators."""
        return {"access_log_lines": self._lines}

    def stop(self, timeout_s: float) -> None:
        """Nothing is kept back."""


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
