"""How often Triton is asked whether clients have left, in virtual time: in groups, round and round, within a budget."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from inflight.serving import cancellation
from inflight.serving.cancellation import (
    GROUP_S,
    LONGEST_ROUND_S,
    QUESTIONS_PER_CORE,
    ROUND_S,
    CancellationPoller,
    questions_per_second,
)

pytestmark = pytest.mark.fast

CORES = 2
ASK_S = 0.0001
RUN_S = 40.0


class World:
    """A clock that stands still but for questions and waits, and a stop when its time is over."""

    def __init__(self, requests: int, gone: frozenset[int] = frozenset()) -> None:
        self.now = 0.0
        self.open = list(range(requests))
        self.gone = gone
        self.asked: list[tuple[float, int]] = []
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def is_set(self) -> bool:
        return self.now > RUN_S

    def wait(self, seconds: float) -> bool:
        assert seconds > 0
        self.waits.append(seconds)
        self.now += seconds
        return self.is_set()

    def ask(self, request: int) -> bool:
        self.now += ASK_S
        self.asked.append((self.now, request))
        if request in self.gone:
            self.open.remove(request)
            return True
        return False


def run(monkeypatch: pytest.MonkeyPatch, requests: int, gone: frozenset[int] = frozenset()) -> World:
    world = World(requests, gone)
    poller = CancellationPoller(lambda: list(world.open), world.ask)
    stop: Any = world
    poller._stop, poller._cores = stop, CORES
    monkeypatch.setattr(cancellation, "time", world)
    poller._run()
    return world


@pytest.mark.parametrize("requests", [1, 2, 5, 8, 64, 400, 1000])
def test_the_budget_is_kept_and_used(monkeypatch: pytest.MonkeyPatch, requests: int) -> None:
    world = run(monkeypatch, requests)
    rate = len(world.asked) / world.now
    most = min(questions_per_second(requests, CORES), requests / ROUND_S)
    assert 0.8 * most < rate < 1.1 * most + 1


@pytest.mark.parametrize("requests", [1, 8, 64, 1000])
def test_everybody_is_asked_about_as_often(monkeypatch: pytest.MonkeyPatch, requests: int) -> None:
    world = run(monkeypatch, requests)
    often = Counter(request for _, request in world.asked)
    assert len(often) == requests
    assert max(often.values()) - min(often.values()) <= 1
    longest = max(ROUND_S, min(LONGEST_ROUND_S, requests / (QUESTIONS_PER_CORE * CORES))) + 2 * GROUP_S
    for request in (0, requests - 1):
        times = [at for at, which in world.asked if which == request]
        assert max(b - a for a, b in itertools.pairwise(times)) < longest


def test_it_wakes_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """To wake up costs more than to ask: two questions or more for each time."""
    world = run(monkeypatch, 64)
    assert len(world.waits) / world.now < 1.2 / GROUP_S
    assert len(world.asked) / len(world.waits) > 4


def test_who_has_left_is_not_on_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    world = run(monkeypatch, 1000, gone=frozenset(range(1000)))
    assert [request for _, request in world.asked] == list(range(1000))
    assert world.asked[-1][0] < 1.0
    assert min(world.waits[1:]) >= cancellation.IDLE_S / 2  # and afterwards it only looks whether somebody comes


def test_a_question_that_fails_costs_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(self: World, request: int) -> bool:
        if request == 1:
            self.now += ASK_S
            raise RuntimeError("Triton's trouble")
        return _ask(self, request)

    _ask = World.ask
    monkeypatch.setattr(World, "ask", ask)
    monkeypatch.setattr(cancellation.log, "exception", lambda *_: None)
    world = run(monkeypatch, 3)
    assert {request for _, request in world.asked} == {0, 2}
