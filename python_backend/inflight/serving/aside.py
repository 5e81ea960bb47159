"""A bounded queue and the one thread that works it off: for what ends of requests bring and the serving path need not
wait for. A collector that hangs, or a log that nobody reads, keeps no stream.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Aside(Generic[Item]):
    """`work` gets what waits, in order and in batches, on a thread of that name, which `stop` ends. It must not raise.
    Any thread.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[Item]], None],
        *,
        most_waiting: int,
        most_at_once: int,
        delay_s: float,
    ) -> None:
        """Start the thread. What is less than `most_at_once` waits up to `delay_s`."""
        self._work = work
        self._most = most_waiting
        self._batch = most_at_once
        self._delay = delay_s
        self._waiting: collections.deque[Item] = collections.deque()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> bool:
        """Take one; false when it does not fit, or after `stop`. Never blocks."""
        with self._lock:
            if self._stopping or len(self._waiting) >= self._most:
                return False
            self._waiting.append(item)
            many = len(self._waiting) >= self._batch
        if many:
            self._wake.set()
        return True

    def stop(self, timeout_s: float) -> bool:
        """Work off what waits, for at most `timeout_s`, and end the thread; false when it was told to before."""
        with self._lock:
            if self._stopping:
                return False
            self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)
        return True

    def _run(self) -> None:
        while True:
            self._wake.wait(self._delay)
            self._wake.clear()
            while self._waiting:
                self._work([self._waiting.popleft() for _ in range(min(len(self._waiting), self._batch))])
            if self._stopping and not self._waiting:
                return
