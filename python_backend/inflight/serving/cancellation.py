"""Asks Triton which clients have left. One thread with a budget of questions, because each is a round trip.

Thread `inflight-cancel`, started and stopped by `CancellationPoller`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable

from inflight.serving.delivery import LiveStream

log = logging.getLogger("inflight.cancellation")

QUESTIONS_PER_CORE = 50  # a second: a question costs about 200 µs over stub and server, so this is 1 % of the cores
MOST_QUESTIONS = 1000
LONGEST_ROUND_S = 8.0  # more questions than that where there are so many streams that a round would take longer
ROUND_S = 0.05  # the least time between two questions about the same stream
IDLE_S = 0.1  # how often to look whether there are streams at all


def questions_per_second(streams: int, cores: int) -> float:
    """The budget for that many streams."""
    return min(MOST_QUESTIONS, max(QUESTIONS_PER_CORE * cores, streams / LONGEST_ROUND_S))


class CancellationPoller:
    """Goes round all live streams; n of them on two cores are asked every max(50 ms, n × 10 ms), at most 8 s."""

    def __init__(self, streams: Callable[[], Iterable[LiveStream]], ask: Callable[[LiveStream], bool]) -> None:
        self._streams = streams
        self._ask = ask
        self._cores = len(os.sched_getaffinity(0))
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
            streams = list(self._streams())
            per_second = questions_per_second(len(streams), self._cores)
            in_vain = 0
            for live in streams:
                try:
                    # Whoever has left is rarely alone: a question that ends a stream is not on the budget.
                    in_vain += not self._ask(live)
                except Exception:
                    in_vain += 1
                    log.exception("request %s: asking whether it is cancelled failed", live.stream.request_id)
                ahead = in_vain / per_second - (time.monotonic() - began)
                if ahead > 0.002 and self._stop.wait(ahead):
                    return
            self._stop.wait(max(ROUND_S - (time.monotonic() - began), 0.001) if streams else IDLE_S)
