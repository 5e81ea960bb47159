"""Random arrivals, departures, cancels and time against the admission queue, for every batching strategy."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from inflight.errors import ErrorCode, RequestError
from inflight.serving.admission import AGEING_S, AdmissionQueue, Reservation, worst_case
from tests.unit.machines.strategies import budget, engine_request, info

pytestmark = pytest.mark.fast

PLACES, BLOCKS, BLOCK_SIZE, QUEUE, WAIT_S = 4, 24, 16, 6, 0.05


class AdmissionMachine(RuleBasedStateMachine):
    """The queue beside two plain dictionaries."""

    requests = Bundle("requests")

    @initialize(strategy=st.sampled_from(["inflight", "dynamic", "static"]), places=st.integers(0, PLACES + 2))
    def begin(self, strategy: str, places: int) -> None:
        self.strategy = strategy
        self.places = min(places or PLACES, PLACES)
        engine = info(max_running=PLACES, blocks_total=BLOCKS, block_size=BLOCK_SIZE)
        self.queue = AdmissionQueue(engine, places, QUEUE, 0, strategy, WAIT_S)
        self.now = 100.0
        self.ids = 0
        self.waiting: dict[int, tuple[float, int, Reservation]] = {}  # id → (rank, order, reservation)
        self.running: dict[int, Reservation] = {}
        self.started: set[int] = set()

    @rule(
        target=requests,
        prompt=st.integers(1, 200),
        answer=st.integers(1, 300),
        sequences=st.integers(1, 3),
        priority=st.integers(-100, 100),
    )
    def arrive(self, prompt: int, answer: int, sequences: int, priority: int) -> int:
        self.ids += 1
        request = engine_request(self.ids, prompt, answer, num_sequences=sequences, priority=priority)
        reservation = worst_case(request, BLOCK_SIZE)
        impossible = reservation.sequences > self.places or reservation.blocks > BLOCKS
        full = len(self.waiting) >= QUEUE
        try:
            self.queue.offer(request, self.now)
            refused = None
        except RequestError as error:
            refused = error.code
        if impossible:
            assert refused is ErrorCode.INVALID_ARG
        elif full:
            assert refused is ErrorCode.UNAVAILABLE
        else:
            assert refused is None
            self.waiting[self.ids] = (self.now - priority * AGEING_S, self.ids, reservation)
        return self.ids

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.03, 0.051, 1.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def start(self) -> None:
        had_batch = bool(self.running)
        soon = self.queue.next_wakeup(self.now)
        order = sorted(self.waiting, key=lambda request_id: self.waiting[request_id][:2])
        started = self.queue.take(self.now)
        assert started == order[: len(started)], "not in the order of priority, age and arrival"
        for request_id in started:
            self.running[request_id] = self.waiting.pop(request_id)[2]
            assert request_id not in self.started, "started twice"
            self.started.add(request_id)
        if self.strategy == "inflight":
            if self.waiting:
                head = self.waiting[order[len(started)]][2]
                assert not self._fits(head), "a request that fits was left waiting"
        else:
            assert not (had_batch and started), "a batch was added to while it ran"
            if not started and self.waiting and not had_batch:
                assert soon is not None
                assert soon > 0.0, "it neither starts a batch nor says when"
        if started:
            assert soon is None or soon == 0.0 or self._is_full(started)

    def _fits(self, reservation: Reservation) -> bool:
        places = sum(item.sequences for item in self.running.values())
        blocks = sum(item.blocks for item in self.running.values())
        return places + reservation.sequences <= self.places and blocks + reservation.blocks <= BLOCKS

    def _is_full(self, started: list[int]) -> bool:
        waiting = sum(item[2].sequences for item in self.waiting.values())
        return waiting + sum(self.running[request_id].sequences for request_id in started) >= self.places

    @rule(request_id=requests)
    def cancel(self, request_id: int) -> None:
        assert self.queue.withdraw(request_id) == (request_id in self.waiting)
        self.waiting.pop(request_id, None)

    @rule(request_id=requests)
    def leave(self, request_id: int) -> None:
        assert self.queue.release(request_id, self.now) == (request_id in self.running)
        self.running.pop(request_id, None)

    @invariant()
    def totals_are_kept(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert self.queue.waiting == len(self.waiting)
        assert self.queue.running == len(self.running)
        assert self.queue.places_used == sum(item.sequences for item in self.running.values()) <= self.places
        assert self.queue.blocks_used == sum(item.blocks for item in self.running.values()) <= BLOCKS

    def teardown(self) -> None:
        """Let everything run out: whatever waits is started in the end, and nothing is left reserved."""
        if not hasattr(self, "queue"):
            return
        for _ in range(2 * len(self.waiting) + 2):
            for request_id in list(self.running):
                self.leave(request_id)
            self.now += WAIT_S + 0.001
            self.start()
        assert not self.waiting
        for request_id in list(self.running):
            self.leave(request_id)
        assert (self.queue.places_used, self.queue.blocks_used) == (0, 0)
        assert self.queue.next_wakeup(self.now) is None


TestAdmissionMachine = AdmissionMachine.TestCase
TestAdmissionMachine.settings = settings(budget(250), stateful_step_count=40)
