"""Asks Triton which clients have left. One thread with a budget of questions, because each is a round trip.

Thread `inflight-cancel`, started and stopped by `CancellationPoller`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from inflight.engine_process import processors

log = logging.getLogger("inflight.cancellation")

QUESTIONS_PER_CORE = 25  # a second: one costs some 200 µs over stub and server, so all take half a percent of the cores
MOST_QUESTIONS = 1000
LONGEST_ROUND_S = 8.0  # more questions than that where there are so many requests that a round would take longer
ROUND_S = 0.1  # the least time between two questions about the same request
GROUP_S = 0.1  # what may be asked in such a time is asked at once: to wake up costs as much as several questions
IDLE_S = 0.1  # how often to look whether there are requests at all

Asked = TypeVar("Asked")


def questions_per_second(requests: int, cores: int) -> float:
    """The budget for that many requests."""
    return min(MOST_QUESTIONS, max(QUESTIONS_PER_CORE * cores, requests / LONGEST_ROUND_S))


class CancellationPoller(Generic[Asked]):
    """Goes round all requests; n of them on two cores are asked every max(100 ms, n × 20 ms), at most 8 s."""

    def __init__(self, requests: Callable[[], Iterable[Asked]], ask: Callable[[Asked], bool]) -> None:
        """`ask` ends a request whose client has left, and says whether it did."""
        self._requests = requests
        self._ask = ask
        self._cores = len(processors.there())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inflight-cancel", daemon=True)

    @property
    def running(self) -> bool:
        """Whether the thread was started and has not ended."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start polling."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            requests = list(self._requests())
            per_second = questions_per_second(len(requests), self._cores)
            in_vain = 0
            for request in requests:
                try:
                    # Whoever has left is rarely alone: a question that ends a request is not on the budget.
                    in_vain += not self._ask(request)
                except Exception:
                    in_vain += 1
                    log.exception("asking whether a client has left failed")
                ahead = in_vain / per_second - (time.monotonic() - began)
                if ahead > GROUP_S and self._stop.wait(ahead):
                    return
            rest = max(ROUND_S, in_vain / per_second) - (time.monotonic() - began)
            self._stop.wait(max(rest, 0.001) if requests else IDLE_S)
