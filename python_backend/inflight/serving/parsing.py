"""Whose request is read next: a few threads parse and tokenize, and a small prompt never waits behind a large one.

Reading goes in two steps. The first finds out what a request asks for; it takes a moment, and comes before everything
else. The second, the chat template and the tokenizer, costs as much as the prompt is long and cannot be stopped in the
middle: it is queued by priority, and by what it costs, in one lane for each size. Thread N takes from the lanes up to
the N-th, so that the first thread is never busy with anything large.

Threads: `inflight-parse-N`, started and joined by `ParsePool`.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
import itertools
import logging
import threading
from collections.abc import Callable, Sequence

from inflight.errors import RequestError, unavailable
from inflight.serving.admission import AGEING_S

log = logging.getLogger("inflight.parsing")

LANES = (4 << 10, 64 << 10)  # bytes of the largest prompt in each lane but the last, which takes the rest
PATIENCE_S_PER_BYTE = 4e-6  # about what tokenizing takes: a prompt lets pass what comes while it would be tokenized
MAX_HELD_BYTES = 256 << 20  # of requests that wait to be read
IDLE_S = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """One step of reading one request.

    `run` does it, and may give the next step. `drop` ends the request instead. `arrival` is monotonic, in seconds.
    `cost` is about how many bytes have to be tokenized, `tokens` about how many tokens the prompt has, `held` how many
    bytes wait with it. `priority` is the request's; None: not known yet.
    """

    run: Callable[[], Work | None]
    drop: Callable[[RequestError], None]
    arrival: float
    cost: int = 0
    tokens: int = 0
    held: int = 0
    priority: int | None = None


class ParseQueue:
    """The order of what waits. Pure: no thread, no clock.

    Whoever arrived first goes first, but each point of priority is worth `AGEING_S`, as in the admission queue, and
    each byte to tokenize `PATIENCE_S_PER_BYTE`; so all of them get their turn.
    """

    def __init__(self, lanes: Sequence[int] = LANES) -> None:
        self._borders = tuple(lanes)
        self._lanes: list[list[tuple[bool, float, int, Work]]] = [[] for _ in range(len(lanes) + 1)]
        self._order = itertools.count()
        self.tokens = 0
        self.held = 0

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    @property
    def lanes(self) -> int:
        """How many lanes there are."""
        return len(self._lanes)

    def lane(self, work: Work) -> int:
        """The lane of a step."""
        return bisect.bisect_left(self._borders, work.cost)

    def put(self, work: Work) -> None:
        """A step waits. Its request has been accepted, so it always may."""
        known = work.priority is not None
        key = work.arrival + work.cost * PATIENCE_S_PER_BYTE - (work.priority or 0) * AGEING_S
        heapq.heappush(self._lanes[self.lane(work)], (known, key, next(self._order), work))
        self.tokens += work.tokens
        self.held += work.held

    def take(self, most: int) -> Work | None:
        """The first step of the lanes up to number `most`; None when there is none."""
        lanes = [lane for lane in self._lanes[: most + 1] if lane]
        if not lanes:
            return None
        work = heapq.heappop(min(lanes, key=lambda lane: lane[0][:3]))[3]
        self.tokens -= work.tokens
        self.held -= work.held
        return work

    def clear(self) -> list[Work]:
        """Everything that waits; nothing does afterwards."""
        left = [work for lane in self._lanes for *_, work in sorted(lane, key=lambda entry: entry[:3])]
        self._lanes = [[] for _ in self._lanes]
        self.tokens = self.held = 0
        return left


class ParsePool:
    """The threads, one for each lane. Public methods may be called from any thread and never block for long."""

    def __init__(self, lanes: Sequence[int] = LANES) -> None:
        self._queue = ParseQueue(lanes)
        self._lock = threading.Lock()
        self._ready = [threading.Condition(self._lock) for _ in range(self._queue.lanes)]
        self._idle: set[int] = set()
        self._closed: RequestError | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(place,), name=f"inflight-parse-{place}", daemon=True)
            for place in range(self._queue.lanes)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Requests that wait to be read (a snapshot)."""
        return len(self._queue)

    @property
    def waiting_tokens(self) -> int:
        """About how many tokens their prompts have (a snapshot)."""
        return self._queue.tokens

    def refusal(self, held: int) -> RequestError | None:
        """Why a further request of `held` bytes may not wait as well."""
        before = self._queue.held
        if before and before + held > MAX_HELD_BYTES:
            return unavailable(f"the queue is full ({before >> 20} MiB wait to be read); try again in a moment")
        return None

    def submit(self, work: Work) -> None:
        """Have it done soon; after `close` it is dropped."""
        with self._lock:
            closed = self._closed
            if closed is None:
                self._queue.put(work)
                self._wake(work)
                return
        self._drop(work, closed)

    def clear(self, error: RequestError) -> None:
        """Drop what waits. What is being done goes on."""
        with self._lock:
            left = self._queue.clear()
        for work in left:
            self._drop(work, error)

    def close(self, error: RequestError, timeout_s: float) -> None:
        """Drop what waits and what still comes, and end the threads; what is being done has `timeout_s` to end."""
        with self._lock:
            self._closed = error
            for ready in self._ready:
                ready.notify()
        self.clear(error)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout_s)

    def _wake(self, work: Work) -> None:
        """Wake the first idle thread that may do it."""
        place = min((place for place in self._idle if place >= self._queue.lane(work)), default=None)
        if place is not None:
            self._idle.discard(place)
            self._ready[place].notify()

    def _run(self, place: int) -> None:
        following: Work | None = None
        while True:
            with self._lock:
                closed = self._closed
                work = self._next(place, following) if closed is None else None
            if closed is not None:
                if following is not None:
                    self._drop(following, closed)
                return
            following = None
            if work is not None:
                following = self._do(work)
            work = None  # while this thread waits it keeps no request alive

    def _next(self, place: int, following: Work | None) -> Work | None:
        """What thread `place` does now, or None after a while. Holds the lock."""
        if following is not None:
            self._queue.put(following)
        work = self._queue.take(place)
        if following is not None and work is not following:
            self._wake(following)
        if work is None:
            self._idle.add(place)
            self._ready[place].wait(IDLE_S)
            self._idle.discard(place)
            work = self._queue.take(place) if self._closed is None else None
        return work

    @staticmethod
    def _do(work: Work) -> Work | None:
        try:
            return work.run()
        except Exception:  # a step ends its request by itself
            log.exception("reading a request failed")
            return None

    @staticmethod
    def _drop(work: Work, error: RequestError) -> None:
        try:
            work.drop(error)
        except Exception:
            log.exception("a request could not be ended")
