"""The same backend, made to send one response per token, for comparison: `apply` changes the delivery of this process.

Loaded by the model.py that scripts/bench/delivery.py writes; never by a server that somebody uses.
"""

from __future__ import annotations

import logging

from inflight.engines.base import EngineOutput
from inflight.serving.delivery import Delivery, LiveStream

log = logging.getLogger("inflight.delivery")


def _serve(self: Delivery, live: LiveStream) -> None:
    """`Delivery._serve` without a gap, and with a response for every item of the inbox."""
    live.queued = False
    while live.inbox:
        with live.lock:
            self._drain(live)
            self._deliver(live)
        self._after(live)


def _drain(self: Delivery, live: LiveStream) -> None:
    """`Delivery._drain` for the first item alone."""
    if live.inbox:
        item = live.inbox.popleft()
        live.stream.append(EngineOutput(live.request_id, 0, [item]) if isinstance(item, int) else item, live.last_ns)


def apply() -> None:
    """From now on every token is sent alone."""
    Delivery._serve = _serve  # type: ignore[method-assign]
    Delivery._drain = _drain  # type: ignore[method-assign]
    log.warning("benchmark: one response per token")
