"""A server's front end and backend share one processor while that is enough, and get more as soon as it is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.engine_process import processors
from inflight_tools.common.layout import BACKEND_SOURCE
from inflight_tools.server import gather
from inflight_tools.server.gather import CROWDED, PATIENT_LOOKS, Gathering, Width

pytestmark = pytest.mark.fast

ALL = sorted(os.sched_getaffinity(0))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process with nothing to do."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    yield process
    process.kill()
    process.wait()


def until(pid: int, wanted: list[int], timeout_s: float = 20.0) -> None:
    give_up = time.monotonic() + timeout_s
    while sorted(os.sched_getaffinity(pid)) != wanted:
        assert time.monotonic() < give_up, os.sched_getaffinity(pid)
        time.sleep(0.02)


def test_one_while_that_is_enough() -> None:
    width = Width(16)
    assert [width.look(used) for used in (0.0, 0.3, CROWDED)] == [1, 1, 1]


def test_twice_as_many_as_soon_as_they_are_crowded_and_fewer_after_a_while() -> None:
    width = Width(6)
    assert [width.look(used) for used in (0.8, 1.9, 3.5, 6.0)] == [2, 4, 6, 6]
    assert [width.look(0.1) for _ in range(PATIENT_LOOKS)][-2:] == [6, 3]
    assert [width.look(0.1) for _ in range(2 * PATIENT_LOOKS)][-1] == 1


def test_a_short_lull_changes_nothing() -> None:
    width = Width(2)
    width.look(1.0)
    for _ in range(3 * PATIENT_LOOKS):
        assert width.look(0.1) == 2
        assert width.look(0.4) == 2


@given(most=st.integers(1, 200), used=st.lists(st.floats(0, 300), max_size=60))
def test_always_between_one_and_all(most: int, used: list[float]) -> None:
    width = Width(most)
    for each in used:
        before = width.now
        assert 1 <= width.look(each) <= most
        assert width.now >= before or each < before  # never fewer than are used


@pytest.mark.skipif(len(ALL) < 2, reason="one processor is all there is")
def test_a_process_is_moved_given_room_and_let_go(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it uses is told it: on a busy machine it would get none."""
    began, uses = time.monotonic(), [0.1]
    monkeypatch.setattr(gather, "cpu_seconds", lambda pid: uses[0] * (time.monotonic() - began) if pid > 0 else None)
    gathering = Gathering(lambda: [sleeper.pid, -1], ALL)
    gathering.start()
    until(sleeper.pid, ALL[-1:])
    uses[0] = 1.9
    until(sleeper.pid, ALL[-2:])
    gathering.stop()
    assert sorted(os.sched_getaffinity(sleeper.pid)) == ALL


def test_who_computes_takes_all_that_the_server_has(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import os; from inflight.engine_process import processors as p; os.sched_setaffinity(0, {%d}); p.take_all(); "
        "print(sorted(os.sched_getaffinity(0)) == sorted(p.there()), len(p.there()))"
    )
    monkeypatch.setenv(processors.VARIABLE, ",".join(map(str, ALL)))
    monkeypatch.setenv("PYTHONPATH", str(BACKEND_SOURCE))
    done = subprocess.run([sys.executable, "-c", program % ALL[-1]], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.split() == ["True", str(len(ALL))]


@pytest.mark.parametrize("value", ["", "all", "1,,2", "-1"])
def test_nothing_or_nonsense_in_the_environment_changes_nothing(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(processors.VARIABLE, value)
    assert processors.there() == os.sched_getaffinity(0)
    processors.take_all()
    assert sorted(os.sched_getaffinity(0)) == ALL
