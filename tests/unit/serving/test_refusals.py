"""When errors are sent."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator

import pytest

from inflight.errors import RequestError, cancelled
from inflight.identity import Identity
from inflight.serving.front_end import FrontEnd
from inflight.serving.refusals import LEAST_AGE_NS, PATIENCE_NS, Refusals


class Answers:
    def __init__(self) -> None:
        self.sent: queue.Queue[tuple[RequestError, int]] = queue.Queue()

    def fail(self, error: RequestError) -> None:
        self.sent.put((error, time.monotonic_ns()))


class Scripted(FrontEnd):
    """A server whose one thread sleeps from a moment on."""

    def __init__(self, asleep_from_ns: int) -> None:
        super().__init__(0)
        self.asleep_from_ns = asleep_from_ns

    def look(self) -> None:
        now = time.monotonic_ns()
        self.saw({1: b"S" if now >= self.asleep_from_ns else b"R"}, now)


@pytest.fixture
def refusals() -> Iterator[Refusals]:
    made = Refusals()
    yield made
    made.stop(2.0)


def ask(refusals: Refusals, front_end: FrontEnd, arrival_ns: int) -> int:
    """The age of an error when it was sent."""
    refusals._front_end = front_end
    refusals.start()
    answers = Answers()
    refusals.answer(answers, cancelled(), Identity("one"), arrival_ns)
    return answers.sent.get(timeout=5.0)[1] - arrival_ns


def test_an_error_is_not_sent_before_its_age(refusals: Refusals) -> None:
    assert ask(refusals, Scripted(0), time.monotonic_ns()) >= LEAST_AGE_NS


def test_an_error_waits_for_the_servers_threads(refusals: Refusals) -> None:
    now = time.monotonic_ns()
    assert ask(refusals, Scripted(now + 100_000_000), now) >= 100_000_000


def test_a_thread_that_is_always_busy_is_not_waited_for_for_ever(refusals: Refusals) -> None:
    age_ns = ask(refusals, Scripted(2**62), time.monotonic_ns())
    assert age_ns >= LEAST_AGE_NS + PATIENCE_NS


def test_errors_that_have_waited_long_enough_go_at_once(refusals: Refusals) -> None:
    """A queue of many does not wait for each of them anew."""
    now = time.monotonic_ns()
    assert ask(refusals, Scripted(2**62), now - 10**9) - 10**9 < PATIENCE_NS


def test_stopping_ends_the_wait_and_sends_what_is_left() -> None:
    refusals = Refusals()
    refusals._front_end = Scripted(2**62)
    refusals.start()
    answers = Answers()
    begin = time.monotonic_ns()
    for _ in range(3):
        refusals.answer(answers, cancelled(), Identity("one"), begin)
    refusals.stop(2.0)
    assert answers.sent.qsize() == 3
    assert time.monotonic_ns() - begin < PATIENCE_NS
    refusals.answer(answers, cancelled(), Identity("late"), time.monotonic_ns())
    assert answers.sent.qsize() == 4
