"""Which request may start, and when. Pure: time comes in as an argument, nothing is sent from here.

A waiting request starts when the engine has a place for all its sequences and KV blocks for its worst case, so that
the pool never runs dry. Order is by priority with ageing: a request gains one point of priority for every `AGEING_S`
seconds it waits, so the lowest (−100) overtakes a stream of fresh highest ones (100) after at most 200 × `AGEING_S`
seconds, and none starves. The request at the head is never overtaken by a smaller one behind it, for the same reason.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math

from inflight.engines.base import EngineInfo, EngineRequest
from inflight.errors import invalid, unavailable

AGEING_S = 0.25


@dataclasses.dataclass(frozen=True, slots=True)
class Reservation:
    """What a running request may take at most: places in the batch and KV blocks."""

    sequences: int
    blocks: int


@dataclasses.dataclass(slots=True)
class _Waiting:
    request_id: int
    reservation: Reservation
    prompt_tokens: int
    arrival: float


def worst_case(request: EngineRequest, block_size: int) -> Reservation:
    """Blocks if every sequence runs to max_tokens and none shares a block; one more each for a copy on write."""
    sampling = request.sampling
    sequences = max(sampling.num_sequences, sampling.beam_width)
    if block_size <= 0:
        return Reservation(sequences, 0)
    per_sequence = math.ceil((len(request.token_ids) + sampling.max_tokens) / block_size)
    return Reservation(sequences, sequences * (per_sequence + (1 if sequences > 1 else 0)))


class AdmissionQueue:
    """Waiting and running requests of one engine.

    Invariant: the sums of the running requests' reservations never exceed `max_running` places and `blocks_total`
    blocks.
    """

    def __init__(
        self,
        info: EngineInfo,
        max_running: int,
        max_queue_size: int,
        max_queue_tokens: int,
        strategy: str = "inflight",
        max_wait_s: float = 0.05,
    ) -> None:
        self._places = min(max_running or info.max_running, info.max_running)
        self._blocks = info.blocks_total
        self._block_size = info.block_size
        self._max_size = max_queue_size
        self._max_tokens = max_queue_tokens
        self._strategy = strategy
        self._max_wait = max_wait_s
        self._heap: list[tuple[float, int, _Waiting]] = []
        self._waiting: dict[int, _Waiting] = {}
        self._running: dict[int, Reservation] = {}
        self._order = itertools.count()
        self._tokens = 0
        self._idle_since = -math.inf  # when the last running request left
        self.places_used = 0
        self.blocks_used = 0

    def __contains__(self, request_id: int) -> bool:
        """Whether a request waits."""
        return request_id in self._waiting

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def waiting_tokens(self) -> int:
        """Tokens of their prompts."""
        return self._tokens

    @property
    def running(self) -> int:
        """Requests that were started and not yet released."""
        return len(self._running)

    @property
    def blocks_total(self) -> int:
        """KV blocks of the pool; 0 where the engine reserves by itself."""
        return self._blocks

    def offer(self, request: EngineRequest, now: float) -> None:
        """Queue a request. Raises INVALID_ARG when it can never fit, UNAVAILABLE when the queue is full."""
        reservation = worst_case(request, self._block_size)
        self._refuse_impossible(request, reservation)
        tokens = len(request.token_ids)
        if len(self._waiting) >= self._max_size:
            raise unavailable(f"the queue is full ({self._max_size} requests wait); try again in a moment")
        if self._max_tokens and self._tokens + tokens > self._max_tokens and self._waiting:
            raise unavailable(f"the queue is full ({self._tokens} prompt tokens wait); try again in a moment")
        entry = _Waiting(request.request_id, reservation, tokens, now)
        self._waiting[request.request_id] = entry
        self._tokens += tokens
        # Ageing adds the same to every waiting request per second, so the order is fixed at arrival.
        heapq.heappush(self._heap, (now - request.priority * AGEING_S, next(self._order), entry))

    def _refuse_impossible(self, request: EngineRequest, reservation: Reservation) -> None:
        if reservation.sequences > self._places:
            name = "beam_width" if request.sampling.beam_width > 1 else "num_return_sequences"
            raise invalid(
                name, f"needs {reservation.sequences} places; this model runs at most {self._places} sequences"
            )
        if self._blocks and reservation.blocks > self._blocks:
            tokens = self._blocks * self._block_size
            raise invalid(
                "max_tokens", f"with this prompt needs more KV cache than the {tokens} tokens this model has; lower it"
            )

    def take(self, now: float) -> list[int]:
        """Ids of the requests to start now, in order; they count as running from here on."""
        if not self._batch_may_start(now):
            return []
        started: list[int] = []
        while self._heap:
            entry = self._heap[0][2]
            if self._waiting.get(entry.request_id) is not entry:  # cancelled while it waited
                heapq.heappop(self._heap)
                continue
            reservation = entry.reservation
            if self.places_used + reservation.sequences > self._places:
                break
            if self._blocks and self.blocks_used + reservation.blocks > self._blocks:
                break
            heapq.heappop(self._heap)
            self._forget(entry)
            self._running[entry.request_id] = reservation
            self.places_used += reservation.sequences
            self.blocks_used += reservation.blocks
            started.append(entry.request_id)
        return started

    def _batch_may_start(self, now: float) -> bool:
        """Whether a new batch may be formed; `inflight` adds to the running one at any time."""
        if self._strategy == "inflight" or not self._waiting:
            return True
        if self._running:
            return False
        full = sum(entry.reservation.sequences for entry in self._waiting.values()) >= self._places
        return full or now >= self._batch_closes()

    def _batch_closes(self) -> float:
        """When a batch starts although it is not full.

        `dynamic` collects for a window after the first arrival, so requests that waited for the last batch start at
        once; `static` goes on waiting for a full batch, and its wait begins when the engine is free.
        """
        oldest = min(entry.arrival for entry in self._waiting.values())
        return (max(oldest, self._idle_since) if self._strategy == "static" else oldest) + self._max_wait

    def next_wakeup(self, now: float) -> float | None:
        """Seconds until `take` could give something without any other event, or None."""
        if self._strategy == "inflight" or not self._waiting or self._running:
            return None
        return max(0.0, self._batch_closes() - now)

    def withdraw(self, request_id: int) -> bool:
        """Take a waiting request out; False when it does not wait (any more)."""
        entry = self._waiting.get(request_id)
        if entry is None:
            return False
        self._forget(entry)
        if len(self._heap) > 2 * len(self._waiting) + 64:  # do not let cancelled entries pile up
            self._heap = [item for item in self._heap if self._waiting.get(item[2].request_id) is item[2]]
            heapq.heapify(self._heap)
        return True

    def _forget(self, entry: _Waiting) -> None:
        del self._waiting[entry.request_id]
        self._tokens -= entry.prompt_tokens

    def release(self, request_id: int, now: float) -> bool:
        """A running request has left the engine; False when it was not running."""
        reservation = self._running.pop(request_id, None)
        if reservation is None:
            return False
        self.places_used -= reservation.sequences
        self.blocks_used -= reservation.blocks
        if not self._running:
            self._idle_since = now
        return True
