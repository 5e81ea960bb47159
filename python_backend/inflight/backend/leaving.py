"""How a model leaves: a drain in its phases (`serving/drain.py`), carried out or taken back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from inflight.backend.state import State
from inflight.errors import RequestError, unavailable
from inflight.model.parameters import ModelConfig
from inflight.serving.drain import Drain, Phase

LEFTOVER_S = 2.0  # what the ends of what is ended may take
ARRIVING_S = 0.05  # a request that was taken just before it would have been refused is counted by then


class Leaving:
    """The drains of one model, each in the thread of whoever orders it."""

    def __init__(
        self,
        config: ModelConfig,
        drain: Drain,
        state: State,
        end_all: Callable[[RequestError], None],
        reopen: Callable[[], None],
    ) -> None:
        """`end_all` ends whatever is under way, `reopen` lets the dispatcher take requests again after that."""
        self._config = config
        self._drain = drain
        self._state = state
        self._end_all = end_all
        self._reopen = reopen
        self._undo_lock = threading.Lock()  # what a drain ends is ended before anybody takes the drain back

    def drain(self, timeout_ms: int | None = None, notice_ms: int | None = None) -> dict[str, Any]:
        """Say that the model leaves, and serve for `notice_ms`; then take no new work and let streams finish for
        `timeout_ms`; end the rest UNAVAILABLE. None: the model's own. Returns early when the drain is undone.
        """
        limit_ms = self._config.drain_timeout_ms if timeout_ms is None else timeout_ms
        notice_ms = self._config.drain_notice_ms if notice_ms is None else notice_ms
        number = self._drain.order(time.monotonic(), notice_ms / 1000, limit_ms / 1000)
        self._wait(number, lambda now: self._drain.phase(now) is not Phase.NOTICE)
        at_start, settled = self._state.under_way, time.monotonic() + ARRIVING_S
        self._wait(number, lambda now: not self._drain.time_left(now) or (now >= settled and not self._state.under_way))
        with self._undo_lock:
            if not self._drain.finish(number):
                return {"drained": False, "reason": "the drain was taken back", "left": self._state.under_way}
            left = self._state.under_way
            if left:
                self._end_all(unavailable("the server is draining; send the request to another server"))
        self.wait_for_none(LEFTOVER_S)
        finished = max(at_start - left, 0)
        return {"drained": True, "finished": finished, "ended": left, "left": self._state.under_way}

    def undrain(self) -> dict[str, Any]:
        """Take a drain back, however far it is, and serve again."""
        if self._state.leaving:
            return {"error": f"a drain cannot be taken back any more: {self._state.leaving}."}
        with self._undo_lock:
            undone = self._drain.undo()
            self._reopen()
        return {"undrained": undone, **self._state.health()}

    def _wait(self, number: int, over: Callable[[float], bool]) -> None:
        """Until something is over, or this drain, or the model."""
        while self._drain.is_on(number) and not self._state.leaving and not over(time.monotonic()):
            time.sleep(0.01)

    def wait_for_none(self, timeout_s: float) -> None:
        """Until nothing is under way, or that long."""
        deadline = time.monotonic() + timeout_s
        while self._state.under_way and time.monotonic() < deadline:
            time.sleep(0.01)
