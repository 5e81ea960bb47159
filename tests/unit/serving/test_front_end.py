"""When the server's threads count as done with what they handed over."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from inflight.serving.front_end import ASLEEP, MOST_KEPT, FrontEnd, ThreadStates
from tests.harness.alone import in_a_process_of_its_own

RUNNING = b"R"


def test_a_thread_that_has_not_slept_since_is_not_done() -> None:
    front_end = FrontEnd(0)
    front_end.saw({1: ASLEEP, 2: ASLEEP}, 100)
    assert front_end.rested_since(100)
    front_end.saw({1: ASLEEP, 2: RUNNING}, 200)
    assert front_end.rested_since(100)
    assert not front_end.rested_since(101)
    front_end.saw({1: RUNNING, 2: ASLEEP}, 300)
    assert front_end.rested_since(200), "each has slept, though never both at once"
    assert not front_end.rested_since(201)


def test_new_threads_and_those_that_end() -> None:
    front_end = FrontEnd(0)
    front_end.saw({1: ASLEEP, 2: RUNNING}, 100)
    assert not front_end.rested_since(1)
    front_end.saw({1: ASLEEP, 3: b"D"}, 200)
    assert not front_end.rested_since(1)
    front_end.saw({1: ASLEEP}, 300)
    assert front_end.rested_since(300)


def test_nobody_waits_where_nothing_can_be_read() -> None:
    front_end = FrontEnd(2**22 + 1)  # no such process: the kernel's highest is 2**22
    front_end.look()
    assert front_end.rested_since(time.monotonic_ns())


def test_states_of_real_threads() -> None:
    sleeps = threading.Event()
    thread = threading.Thread(target=sleeps.wait, args=(30.0,), name="sleeps) R (")
    thread.start()
    try:
        time.sleep(0.05)
        states = ThreadStates(os.getpid()).read()
    finally:
        sleeps.set()
        thread.join()
    assert thread.native_id is not None
    assert states[thread.native_id] == ASLEEP
    assert states[threading.get_native_id()] == RUNNING
    assert all(len(state) == 1 for state in states.values())


@contextmanager
def sleepers(count: int) -> Iterator[None]:
    leave = threading.Event()
    asleep = [threading.Thread(target=leave.wait, args=(30.0,)) for _ in range(count)]
    for thread in asleep:
        thread.start()
    yield
    leave.set()
    for thread in asleep:
        thread.join()
    time.sleep(0.05)  # until the kernel knows too


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@in_a_process_of_its_own
def test_files_stay_open_from_look_to_look_and_go_with_their_threads() -> None:
    before = descriptors()
    states = ThreadStates(os.getpid())
    opened: list[str] = []
    original = os.open

    def noted(path: str, flags: int) -> int:
        opened.append(path)
        return original(path, flags)

    with pytest.MonkeyPatch.context() as monkeypatch, sleepers(20):
        monkeypatch.setattr(os, "open", noted)
        assert len(states.read()) == threads()
        opened.clear()
        assert len(states.read()) == threads()
        assert opened == [], "nothing is opened twice"
        assert descriptors() == before + threads()
    assert len(states.read()) == threads()
    assert descriptors() == before + threads(), "a thread that has ended has no file any more"
    states.close()
    assert descriptors() == before


@in_a_process_of_its_own
def test_a_server_of_many_threads_costs_a_bounded_number_of_files() -> None:
    before = descriptors()
    states = ThreadStates(os.getpid())
    with sleepers(MOST_KEPT + 20):
        time.sleep(0.05)
        for _ in range(2):
            assert len(states.read()) == threads()
            assert descriptors() == before + MOST_KEPT
    states.close()
    assert descriptors() == before


@in_a_process_of_its_own
def test_a_thread_that_ends_between_the_list_and_its_file_is_left_out() -> None:
    states = ThreadStates(os.getpid())
    with sleepers(1):
        known = states.read()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "listdir", lambda folder: [str(thread) for thread in known])
        assert set(states.read()) == set(known) - {max(known)}
    states.close()
