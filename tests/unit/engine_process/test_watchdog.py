"""The watchdog on a made-up clock: time that the machine did not give is forgiven, a stall is found."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.engine_process.cpu_wait import cpu_waits
from inflight.engine_process.watchdog import (
    IDLE_WAIT_S,
    StatePage,
    Watchdog,
    WorkerState,
    beat_of,
    patience_with,
    watch_interval_s,
)
from tests.unit.machines.strategies import budget

pytestmark = pytest.mark.fast

TIMEOUT, INTERVAL = 10.0, 0.05


@dataclasses.dataclass
class Machine:
    """A wall clock that runs on while the machine is paused. `running` is the time that processes really got."""

    now: float = 1000.0
    next_tick: float = 1000.0
    beat: float = 1000.0
    watchdog: Watchdog = dataclasses.field(default_factory=lambda: Watchdog(TIMEOUT, INTERVAL))

    def run(self, seconds: float, beats: bool) -> float | None:
        """Processes run for `seconds`; seconds until the watchdog found a stall, or None."""
        end = self.now + seconds
        began = self.now
        while self.next_tick <= end:
            self.now = self.next_tick
            if beats:
                self.beat = self.now
            if self.watchdog.tick(self.now, self.beat):
                return self.now - began
            self.next_tick = self.now + INTERVAL
        self.now = end
        return None

    def pause(self, seconds: float) -> None:
        """Nothing runs: the clock goes on, the watchdog's next tick comes late."""
        self.now += seconds
        self.next_tick = max(self.next_tick, self.now)


def judged(seconds: float, share: float) -> float | None:
    """Seconds until a step without a beat is a stall, when the first of its threads waits that share of the time."""
    watchdog, now, waited = Watchdog(TIMEOUT, INTERVAL), 1000.0, 0.0
    while now < 1000.0 + seconds:
        if watchdog.tick(now, 1000.0, waits={1: int(waited * 1e9), 2: 0}):
            return now - 1000.0
        now += INTERVAL
        waited += share * INTERVAL
    return None


@pytest.mark.parametrize("stall_s", [0.1, 0.2, 0.5, 10.0])
def test_an_engine_without_a_processor_is_not_stalled_however_short_a_stall_is(stall_s: float) -> None:
    """As the supervisor asks: what the threads wait for is looked at when the watchdog wants to know."""
    interval = watch_interval_s(stall_s)
    watchdog, beat = Watchdog(stall_s, interval, 1000.0), 1000.0
    for number in range(1, 300):
        now = beat + number * interval
        waits = {1: int((now - beat) * 1e9)} if watchdog.wants_waits(now, beat) else None
        assert not watchdog.tick(now, beat, 1.0, waits), now - beat


@pytest.mark.parametrize(("share", "limit"), [(0.0, 10.0), (0.5, 20.0), (0.8, 50.0)])
def test_waiting_for_a_processor_is_no_stall(share: float, limit: float) -> None:
    found = judged(100.0, share)
    assert found is not None
    assert found == pytest.approx(limit, rel=0.02)


def test_what_was_waited_before_a_beat_is_not_forgiven_after_it() -> None:
    watchdog = Watchdog(TIMEOUT, INTERVAL)
    now = 1000.0
    while now < 1009.0:
        assert not watchdog.tick(now, 1000.0, waits={1: int((now - 1000.0) * 1e9)})
        now += INTERVAL
    beat = now
    while not watchdog.tick(now, beat, waits={1: int(9e9)}):
        now += INTERVAL
    assert now - beat == pytest.approx(TIMEOUT, abs=2 * INTERVAL)


def test_the_kernel_tells_who_waits() -> None:
    """Two processes on one processor: each waits about half of the time."""
    context = multiprocessing.get_context("spawn")
    core = next(iter(os.sched_getaffinity(0)))
    workers = [context.Process(target=_compute_on, args=(core,), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        deadline = time.monotonic() + 20.0
        while time.monotonic() < deadline and sum(cpu_waits(workers[0].pid or 0).values()) < 2e8:
            time.sleep(0.05)
        assert sum(cpu_waits(workers[0].pid or 0).values()) >= 2e8
    finally:
        for worker in workers:
            worker.kill()
            worker.join(10.0)
    assert cpu_waits(workers[0].pid or 0) == {}


def _compute_on(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        sum(range(10_000))


SHORT = st.floats(0.0, TIMEOUT * 0.9)
PAUSES = st.floats(0.0, 100.0)


@given(st.lists(st.tuples(SHORT, PAUSES), max_size=8))
@budget(150)
def test_pauses_of_any_length_are_no_stall_while_the_engine_beats(segments: list[tuple[float, float]]) -> None:
    machine = Machine()
    for seconds, pause in segments:
        assert machine.run(seconds, beats=True) is None
        machine.pause(pause)
    assert machine.run(INTERVAL, beats=True) is None


@given(steps=st.lists(st.tuples(SHORT, PAUSES, SHORT), max_size=5))
@budget(150)
def test_a_pause_in_the_middle_of_a_long_step_is_forgiven(steps: list[tuple[float, float, float]]) -> None:
    """Each step takes less than the limit in time that the process had, however long the machine slept in it."""
    machine = Machine()
    for before, pause, after in steps:
        machine.run(INTERVAL, beats=True)
        whole = min(before + after, TIMEOUT * 0.95)
        assert machine.run(min(before, whole), beats=False) is None
        machine.pause(pause)
        assert machine.run(max(0.0, whole - before), beats=False) is None


@given(before=SHORT, pauses=st.lists(st.tuples(SHORT.filter(lambda value: value < 3.0), PAUSES), max_size=3))
@budget(150)
def test_an_engine_that_stands_still_is_found_in_time(before: float, pauses: list[tuple[float, float]]) -> None:
    """Not later than the limit in time that the watchdog itself ran, and not before it."""
    machine = Machine()
    assert machine.run(before, beats=True) is None
    stalled_for = 0.0
    for seconds, pause in pauses:
        assert machine.run(seconds, beats=False) is None
        stalled_for += seconds
        machine.pause(pause)
    found = machine.run(2 * TIMEOUT, beats=False)
    assert found is not None
    assert stalled_for + found <= TIMEOUT + 3 * INTERVAL + 0.01
    assert stalled_for + found >= TIMEOUT - (2 + len(pauses)) * INTERVAL, "each pause may hide at most one interval"


def test_a_whole_group_paused_for_30_s_is_no_stall() -> None:
    machine = Machine()
    machine.run(1.0, beats=True)
    machine.run(3.0, beats=False)
    machine.pause(30.0)
    assert machine.run(5.0, beats=False) is None
    machine.run(1.0, beats=True)
    assert machine.run(9.0, beats=False) is None


def test_a_pause_before_the_first_look_is_no_stall() -> None:
    watchdog = Watchdog(TIMEOUT, INTERVAL, 1000.0)
    assert not watchdog.tick(1060.0, 999.9)
    assert not watchdog.tick(1060.0 + INTERVAL, 1060.0)
    assert Watchdog(TIMEOUT, INTERVAL, 1000.0).tick(1000.0 + INTERVAL, 980.0)  # a stall is one from the first look on


def test_four_fold_oversubscription_is_no_stall() -> None:
    """Every process gets a quarter of the time: a step of 9 s takes 36, and every tick comes late."""
    watchdog = Watchdog(TIMEOUT, INTERVAL)
    now = beat = 1000.0
    assert not watchdog.tick(now, beat)
    for _ in range(int(36.0 / (4 * INTERVAL))):
        now += 4 * INTERVAL
        assert not watchdog.tick(now, beat)


def test_time_lost_before_a_beat_does_not_excuse_a_later_stall() -> None:
    machine = Machine()
    machine.run(0.5, beats=True)
    machine.pause(60.0)
    machine.run(0.5, beats=True)
    found = machine.run(2 * TIMEOUT, beats=False)
    assert found is not None
    assert found <= TIMEOUT + 3 * INTERVAL


@pytest.mark.parametrize(
    ("state", "waiting_since", "beat"),
    [
        (WorkerState.STARTING, 40.0, None),
        (WorkerState.IDLE, None, 50.0 + IDLE_WAIT_S),  # it may sleep so long
        (WorkerState.STEPPING, 90.0, 50.0),
        (WorkerState.ADDING, 90.0, 50.0),
        (WorkerState.SENDING, None, 100.0),  # it waits for us
        (WorkerState.SENDING, 90.0, 90.0),  # we wait for it: it was stopped in the middle of its words
        (WorkerState.SENDING, 40.0, 50.0),
    ],
)
def test_who_is_waited_for(state: WorkerState, waiting_since: float | None, beat: float | None) -> None:
    assert beat_of(state, 50.0, waiting_since, 100.0) == beat
    assert beat_of(state, 0.0, waiting_since, 100.0) is None


def test_a_step_may_take_as_long_as_its_engine_says() -> None:
    """A step of many tokens of a large model on a slow processor takes longer than any hang should last."""
    assert patience_with(WorkerState.STEPPING, 7.5) == 7.5
    assert patience_with(WorkerState.STEPPING, 0.2) == 1, "never less than the stall time"
    for state in (WorkerState.IDLE, WorkerState.SENDING):
        assert patience_with(state, 7.5) == 1
    assert patience_with(WorkerState.ADDING, 7.5) == patience_with(WorkerState.ADDING)


def test_an_add_has_a_limit_of_its_own() -> None:
    """An adapter from a cold disk is no stall; an add that never returns is one."""
    patience = patience_with(WorkerState.ADDING)
    assert patience > 1
    for state in (WorkerState.IDLE, WorkerState.STEPPING, WorkerState.SENDING):
        assert patience_with(state) == 1
    watchdog = Watchdog(TIMEOUT, INTERVAL)
    found, now = None, 1000.0
    while found is None and now < 1000.0 + 100 * TIMEOUT:
        found = now if watchdog.tick(now, 1000.0, patience) else None
        now += INTERVAL
    assert found is not None
    assert patience * TIMEOUT < found - 1000.0 < patience * TIMEOUT + 3 * INTERVAL


def test_a_page_tells_the_other_process_what_was_written(tmp_path: Path) -> None:
    writer = StatePage(tmp_path / "state", create=True)
    reader = StatePage(tmp_path / "state", create=False)
    assert reader.read() == (WorkerState.STARTING, 0)
    for state in WorkerState:
        writer.write(state, 2**62 + state.value)
        assert reader.read() == (state, 2**62 + state.value)
    writer.close()
    reader.close()


def test_a_page_is_never_made_over_another(tmp_path: Path) -> None:
    StatePage(tmp_path / "state", create=True).close()
    with pytest.raises(FileExistsError):
        StatePage(tmp_path / "state", create=True)
