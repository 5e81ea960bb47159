"""Which deadline passes next."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Ending(Protocol):
    """Something that may end before its deadline."""

    @property
    def closed(self) -> bool:
        """Whether it has ended."""


Timed = TypeVar("Timed", bound=Ending)
LEAST = 64  # entries below which nothing is thrown away


class Deadlines(Generic[Timed]):
    """A heap in which what has ended does not pile up: its size is at most twice what has not, and 64. Not
    thread-safe.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timed]] = []
        self._order = itertools.count()
        self._most = LEAST

    def add(self, at: float, item: Timed) -> None:
        """`item` is to end at `at`, in seconds of the caller's clock."""
        if len(self._heap) >= self._most:
            self._heap = [entry for entry in self._heap if not entry[2].closed]
            heapq.heapify(self._heap)
            self._most = 2 * len(self._heap) + LEAST
        heapq.heappush(self._heap, (at, next(self._order), item))

    def next(self) -> float | None:
        """When the next one passes; None when there is none."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Iterator[Timed]:
        """Those whose deadline has passed and that have not ended, the soonest first; each is given once."""
        while self._heap and self._heap[0][0] <= now:
            item = heapq.heappop(self._heap)[2]
            if not item.closed:
                yield item
