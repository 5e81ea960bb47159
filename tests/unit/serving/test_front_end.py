"""When the server's threads count as done with what they handed over."""

from __future__ import annotations

import os
import threading
import time

from inflight.serving.front_end import ASLEEP, FrontEnd, read_states

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
        states = read_states(os.getpid())
    finally:
        sleeps.set()
        thread.join()
    assert thread.native_id is not None
    assert states[thread.native_id] == ASLEEP
    assert states[threading.get_native_id()] == RUNNING
    assert all(len(state) == 1 for state in states.values())
