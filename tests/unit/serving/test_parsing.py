from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.errors import RequestError, unavailable
from inflight.serving.admission import AGEING_S
from inflight.serving.parsing import LANES, MAX_HELD_BYTES, PATIENCE_S_PER_BYTE, ParsePool, ParseQueue, Work
from tests.unit.machines.strategies import budget

pytestmark = pytest.mark.fast

WAIT_S = 20.0
SMALL, MIDDLE, LARGE = LANES[0], LANES[1], 100 * LANES[1]
GONE = unavailable("the model is gone")


def step(cost: int = 0, arrival: float = 0.0, priority: int | None = 0, **more: Any) -> Work:
    return Work(lambda: None, lambda _: None, arrival, cost, priority=priority, **more)


def taken(queue: ParseQueue, most: int = 2) -> list[Work]:
    return [work for work in iter(lambda: queue.take(most), None) if work is not None]


# -- the order -----------------------------------------------------------------------------------------------------


def test_who_comes_first_is_read_first() -> None:
    queue = ParseQueue()
    works = [step(arrival=float(place)) for place in range(5)]
    for work in reversed(works):
        queue.put(work)
    assert taken(queue) == works


def test_a_first_look_comes_before_everything_else() -> None:
    """Until then nobody knows how urgent it is."""
    queue = ParseQueue()
    known, unknown = step(priority=100), step(arrival=1e6, priority=None)
    queue.put(known)
    queue.put(unknown)
    assert taken(queue) == [unknown, known]


def test_priority_counts_before_a_prompt_is_read() -> None:
    queue = ParseQueue()
    low, high, older = step(LARGE, 1.0, -5), step(LARGE, 1.0, 5), step(LARGE, 1.0 - 11 * AGEING_S, -5)
    for work in (low, high, older):
        queue.put(work)
    assert taken(queue) == [older, high, low]


def test_a_thread_takes_nothing_larger_than_its_lane() -> None:
    queue = ParseQueue()
    works = [step(LARGE), step(MIDDLE, 1.0), step(SMALL, 2.0)]
    for work in works:
        queue.put(work)
    assert [queue.lane(work) for work in works] == [2, 1, 0]
    assert queue.take(0) is works[2]
    assert queue.take(0) is None
    assert queue.take(1) is works[1]
    assert queue.take(1) is None
    assert queue.take(2) is works[0]


def test_a_large_prompt_gets_its_turn_among_small_ones_without_end() -> None:
    """It lets pass what comes within the time that tokenizing it would take, and no more."""
    queue = ParseQueue()
    large = step(LARGE)
    queue.put(large)
    for number in range(10_000):
        queue.put(step(arrival=0.01 * number))
        if queue.take(2) is large:
            assert 0.01 * number == pytest.approx(LARGE * PATIENCE_S_PER_BYTE, abs=0.02)
            return
    raise AssertionError("it starved")


@given(
    st.lists(
        st.tuples(
            st.sampled_from((0, 1, SMALL, SMALL + 1, MIDDLE, MIDDLE + 1, LARGE)),
            st.floats(0, 100),
            st.none() | st.integers(-100, 100),
            st.integers(0, 9),
        )
    ),
    st.lists(st.integers(0, 2)),
)
@budget(200)
def test_nothing_is_lost_and_the_sums_are_right(steps: list[Any], turns: list[int]) -> None:
    queue = ParseQueue()
    waiting = {}
    for cost, arrival, priority, tokens in steps:
        work = step(cost, arrival, priority, tokens=tokens, held=2 * tokens)
        waiting[id(work)] = work
        queue.put(work)
    for most in turns:
        work = queue.take(most)
        if work is None:
            assert all(queue.lane(other) > most for other in waiting.values())
        else:
            assert queue.lane(work) <= most
            del waiting[id(work)]
        assert len(queue) == len(waiting)
        assert queue.tokens == sum(other.tokens for other in waiting.values())
        assert queue.held == 2 * queue.tokens
    assert {id(work) for work in queue.clear()} == set(waiting)
    assert (len(queue), queue.tokens, queue.held) == (0, 0, 0)


# -- the threads ---------------------------------------------------------------------------------------------------


class Steps:
    """Steps that wait for each other, and what became of them."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.done: list[str] = []
        self.dropped: list[str] = []
        self._changed = threading.Condition()

    def make(self, name: str, cost: int = 0, *, waits: bool = False, then: Work | None = None, **more: Any) -> Work:
        def run() -> Work | None:
            self._note(self.done, f"begin {name}" if waits else name)
            if waits:
                self.go.wait(WAIT_S)
                self._note(self.done, name)
            return then

        return Work(run, lambda error: self._note(self.dropped, f"{name}: {error.message}"), 0.0, cost, **more)

    def wait(self, *names: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: set(names) <= {*self.done, *self.dropped}, WAIT_S), self.done

    def _note(self, where: list[str], what: str) -> None:
        with self._changed:
            where.append(what)
            self._changed.notify_all()


@pytest.fixture
def steps() -> Iterator[Steps]:
    made = Steps()
    yield made
    made.go.set()


@pytest.fixture
def pool() -> Iterator[ParsePool]:
    made = ParsePool()
    made.start()
    yield made
    made.close(GONE, WAIT_S)


def test_small_prompts_are_read_while_large_ones_take_their_time(pool: ParsePool, steps: Steps) -> None:
    for number in range(10):
        pool.submit(steps.make(f"large {number}", LARGE, waits=True, priority=0, tokens=7, held=9))
        pool.submit(steps.make(f"middle {number}", MIDDLE, waits=True, priority=0))
    steps.wait("begin middle 0")
    for number in range(5):
        pool.submit(steps.make(f"small {number}", SMALL, priority=0))
    steps.wait(*(f"small {number}" for number in range(5)))
    assert not any(name.startswith(("large", "middle")) for name in steps.done)
    assert pool.waiting_tokens >= 8 * 7
    steps.go.set()
    steps.wait(*(f"{size} {number}" for size in ("large", "middle") for number in range(10)))
    assert (pool.waiting, pool.waiting_tokens) == (0, 0)


def test_what_follows_a_step_is_queued_like_everything_else(pool: ParsePool, steps: Steps) -> None:
    pool.submit(steps.make("look", then=steps.make("read", LARGE, then=steps.make("end", priority=0), priority=0)))
    steps.wait("look", "read", "end")
    assert steps.done == ["look", "read", "end"]


def test_a_step_that_fails_ends_no_thread(pool: ParsePool, steps: Steps) -> None:
    def fail() -> Work | None:
        raise RuntimeError("a bug of ours")

    for cost in (0, MIDDLE, LARGE) * 3:
        pool.submit(Work(fail, lambda _: None, 0.0, cost))
    pool.submit(steps.make("after", LARGE))
    steps.wait("after")


def test_clearing_drops_what_waits_and_lets_go_on_what_is_done(pool: ParsePool, steps: Steps) -> None:
    for number in range(4):
        pool.submit(steps.make(f"large {number}", LARGE, waits=True, priority=0))
    steps.wait("begin large 0")
    pool.clear(GONE)
    assert steps.dropped == [f"large {number}: the model is gone" for number in (1, 2, 3)]
    pool.submit(steps.make("later", LARGE, priority=0))
    steps.go.set()
    steps.wait("large 0", "later")


def test_closing_is_quick_however_much_waits(steps: Steps) -> None:
    pool = ParsePool()
    pool.start()
    follower = steps.make("follower", LARGE, priority=0)
    pool.submit(steps.make("large", LARGE, waits=True, priority=0, then=follower))
    steps.wait("begin large")
    for number in range(2000):
        pool.submit(steps.make(f"waits {number}", LARGE, priority=0))
    began = time.monotonic()
    pool.close(GONE, 0.1)
    assert time.monotonic() - began < 5.0
    assert len(steps.dropped) == 2000
    pool.submit(steps.make("too late"))
    steps.go.set()
    steps.wait("large", "too late: the model is gone", "follower: the model is gone")


def test_more_than_so_many_bytes_may_not_wait(pool: ParsePool, steps: Steps) -> None:
    for number in range(2):
        assert pool.refusal(MAX_HELD_BYTES) is None
        pool.submit(steps.make(f"large {number}", LARGE, waits=True, priority=0, held=MAX_HELD_BYTES))
        steps.wait("begin large 0")
    refusal = pool.refusal(1)
    assert isinstance(refusal, RequestError)
    assert "256 MiB" in refusal.message
