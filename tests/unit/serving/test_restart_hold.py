"""While a lost engine starts again, requests of which it has said nothing wait for the next one: each of them ends
exactly once, whatever comes in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from inflight.engine_process.supervisor import Health
from tests.unit.machines.delivery_fakes import Record
from tests.unit.machines.delivery_model import MAX_QUEUE, World

pytestmark = pytest.mark.fast

HOLD_S = 2.0
PLACES = 4
Make = Callable[[int], World]


@pytest.fixture
def make() -> Iterator[Make]:
    """A world with that `restart_hold_ms`."""
    made: list[World] = []

    def world(hold_ms: int) -> World:
        made.append(World(restart_hold_ms=hold_ms))
        return made[-1]

    yield world
    for each in made:
        each.close()


@pytest.fixture
def world(make: Make) -> World:
    return make(int(HOLD_S * 1000))


def handed_over(world: World, count: int = 1, **values: object) -> list[Record]:
    """Requests that have come as far as they get without an engine."""
    records = [world.request_arrives(max_tokens=3, **values) for _ in range(count)]
    go_on(world)
    return records


def go_on(world: World) -> None:
    while world.pool.work:
        world.parse_thread()
    while world.dispatcher_thread():
        pass
    while world.sender_thread():
        pass


def outcomes(records: list[Record]) -> set[str]:
    return {record.outcome for record in records}


def test_what_the_engine_never_had_is_answered_by_the_next_one(world: World) -> None:
    inside = handed_over(world, PLACES)
    queued = handed_over(world, 2)
    world.engine_steps(lambda *_: 1)
    world.engine_is_lost()
    go_on(world)
    new = handed_over(world, 2)
    world.clock.sleep(HOLD_S / 2)
    go_on(world)
    assert outcomes(inside) == {"unavailable"}, "another engine's words would not go with what there is"
    assert not any(record.terminals for record in queued + new)
    assert world.backend.status()["waiting"] == 4
    world.engine_comes_up()
    world.settle()
    assert outcomes(queued + new) == {"length"}
    world.check_ends()
    world.check_counters()


def test_what_it_had_said_nothing_of_begins_anew_once(world: World) -> None:
    """A prompt that ends engines must not end one after another."""
    heard, *unheard = handed_over(world, PLACES)
    queued = handed_over(world)
    first, *_ = world.engine.requests
    world.engine_steps(lambda request_id, _: request_id == first)
    world.engine_is_lost()
    go_on(world)
    assert outcomes([heard]) == {"unavailable"}
    assert not any(record.terminals for record in unheard + queued)
    assert world.backend.status()["waiting"] == PLACES
    world.engine_comes_up()
    go_on(world)
    assert len(world.engine.requests) == PLACES
    world.engine_is_lost()
    go_on(world)
    assert outcomes(unheard) == {"unavailable"}
    assert not queued[0].terminals, "this was its first"
    world.engine_comes_up()
    world.settle()
    assert outcomes(queued) == {"length"}
    undisturbed = handed_over(world)
    world.settle()
    assert queued[0].texts == undisturbed[0].texts
    world.check_ends()
    world.check_counters()


def test_what_a_link_may_still_say_something_of_does_not_begin_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = handed_over(world)
    monkeypatch.setattr(type(world.engine), "is_silent", False)
    world.engine_is_lost()
    go_on(world)
    assert outcomes(inside) == {"unavailable"}
    world.check_ends()


def test_without_it_they_end_at_once(make: Make) -> None:
    world = make(0)
    queued = handed_over(world, PLACES + 2)
    world.engine_is_lost()
    go_on(world)
    assert outcomes(queued + handed_over(world)) == {"unavailable"}
    world.check_ends()


def test_nothing_is_held_for_longer(world: World) -> None:
    world.engine_is_lost()
    first = handed_over(world)
    world.clock.sleep(HOLD_S / 2)
    second = handed_over(world)
    world.clock.sleep(HOLD_S / 2 + 0.01)
    go_on(world)
    assert outcomes(first) == {"unavailable"}
    assert not second[0].terminals, "each for that long"
    world.clock.sleep(HOLD_S / 2)
    go_on(world)
    assert outcomes(second) == {"unavailable"}
    world.check_ends()


def test_who_waits_for_a_place_is_not_ended_by_a_hold_that_is_over(world: World) -> None:
    world.engine_is_lost()
    records = handed_over(world, PLACES + 1, ignore_eos=True)
    world.engine_comes_up()
    world.dispatcher_thread()
    world.clock.sleep(2 * HOLD_S)
    go_on(world)
    assert not any(record.terminals for record in records)
    world.engine_steps(lambda *_: 1)
    world.engine_is_lost()
    go_on(world)
    assert [record.terminals for record in records] == [1] * PLACES + [0], "its hold begins anew"
    world.engine_comes_up()
    world.settle()
    assert records[-1].outcome == "length"
    world.check_ends()


def test_the_queue_keeps_its_limits(world: World) -> None:
    world.engine_is_lost()
    records = handed_over(world, MAX_QUEUE + PLACES + 3)
    refused = [record for record in records if record.terminals]
    assert len(refused) >= 3
    assert world.backend.status()["waiting"] <= MAX_QUEUE
    world.engine_comes_up()
    world.settle()
    assert outcomes(records) == {"length", "unavailable"}
    world.check_ends()


def test_deadlines_and_leaves_count_meanwhile(world: World) -> None:
    world.engine_is_lost()
    hurried, gone = handed_over(world, 1, deadline_ms=500), handed_over(world)
    world.clock.sleep(0.6)
    go_on(world)
    assert outcomes(hurried) == {"unavailable"}
    gone[0].gone = True
    world.poller_thread()
    go_on(world)
    assert outcomes(gone) == {"cancelled"}
    world.engine_comes_up()
    world.settle()
    world.check_ends()
    assert not world.engine.requests


def test_a_drain_waits_for_the_engine_and_ends_what_is_left(world: World) -> None:
    world.engine_is_lost()
    held = handed_over(world, 2)
    answer = world.drain(300)
    assert answer["ended"] == 2
    assert outcomes(held) == {"unavailable"}
    assert outcomes(handed_over(world)) == {"unavailable"}
    world.check_ends()


def test_an_engine_that_comes_during_the_drain_finishes_them(world: World) -> None:
    world.engine_is_lost()
    held = handed_over(world)
    world.engine_comes_up()
    assert world.drain(3000)["finished"] == 1
    assert outcomes(held) == {"length"}
    world.check_ends()


def test_an_unload_ends_them(world: World) -> None:
    world.engine_is_lost()
    held = handed_over(world, 2)
    read = world.request_arrives(max_tokens=3)  # not read yet
    world.backend._state.leaving = "the model is being unloaded"
    world.backend._close(world.dispatcher._no_engine)
    go_on(world)
    assert outcomes([*held, read]) == {"unavailable"}
    world.check_ends()


def test_an_engine_that_is_given_up_ends_them_and_what_is_on_its_way(world: World) -> None:
    world.engine_is_lost()
    held = handed_over(world, 2)
    read = world.request_arrives(max_tokens=3)
    world.backend._supervisor.health = Health.FAILED
    world.backend.on_engine_failed()
    go_on(world)
    assert outcomes([*held, read, *handed_over(world)]) == {"unavailable"}
    world.check_ends()


def test_nothing_is_given_to_a_link_that_is_lost(world: World) -> None:
    """Between the engine's death and the supervisor's word of it."""
    world.engine.lost = True
    held = handed_over(world, 2)
    assert not any(record.terminals for record in held)
    world.engine_is_lost()
    go_on(world)
    world.engine_comes_up()
    world.settle()
    assert outcomes(held) == {"length"}
    world.check_ends()


@pytest.mark.parametrize("strategy", ["inflight", "dynamic", "static"])
def test_nobody_is_busy_while_requests_are_held(strategy: str) -> None:
    """A batch whose window is over wants to start at once, and cannot."""
    world = World(restart_hold_ms=int(HOLD_S * 1000), batching_strategy=strategy)
    try:
        world.engine_is_lost()
        handed_over(world)
        world.clock.sleep(1.0)
        assert world.dispatcher._wait_s() > 0.5
        world.engine_comes_up()
        world.settle()
        world.check_ends()
    finally:
        world.close()
