"""Health, asked thousands of times while whatever can happen to a server happens: never wrong for a second, never slow.

An answer is right when it was true at some moment of the second before it. The truth is what the model itself says and
Triton says of it, asked directly all the time; of a process that was stopped (SIGSTOP) it is that nothing is served.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.conftest import require_installation
from tests.harness.http_client import HttpClient
from tests.reliability.conftest import Report
from tests.reliability.rig import OpenRig, Rig, rigs

pytestmark = pytest.mark.server

LATE_S = 1.0  # how old a truth an answer may tell
SLOW_S = 1.0  # how long it may take
STALL_MS = 1000
FROZEN_S = 3.0


@dataclasses.dataclass(frozen=True, slots=True)
class Said:
    """What somebody said between two moments (monotonic seconds)."""

    begin: float
    end: float
    what: bool


@pytest.fixture
def open_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenRig]:
    """A server for each test: the port speaks of every model in the folder of control sockets."""
    require_installation()
    with rigs(lambda: tmp_path_factory.mktemp("rig")) as make:
        yield make


class Witness:
    """Asks, again and again, in a thread of its own, and keeps what was said."""

    def __init__(self, ask: Callable[[], bool], pause_s: float) -> None:
        self._ask = ask
        self._pause_s = pause_s
        self.said: list[Said] = []
        self._stop = threading.Event()
        pool = ThreadPoolExecutor(1)
        self._run_to_end = pool.submit(self._run)
        pool.shutdown(wait=False)

    def _run(self) -> None:
        while not self._stop.is_set():
            begin = time.monotonic()
            what = self._ask()
            self.said.append(Said(begin, time.monotonic(), what))
            time.sleep(self._pause_s)

    def stop(self) -> None:
        """End it. Raises what ended it before: others look wrong, or right, beside a witness that left in silence."""
        self._stop.set()
        self._run_to_end.result(10.0)


def wrong(answers: list[Said], truths: list[Said]) -> list[Said]:
    """Answers that nothing true in the second before them agrees with."""
    found, first = [], 0
    for answer in answers:
        while first < len(truths) and truths[first].end < answer.begin - LATE_S:
            first += 1
        recent = []
        for truth in truths[max(first - 1, 0) :]:  # the last one before lasted until the next
            recent.append(truth.what)
            if truth.begin > answer.end:  # it became so at some time since the question before
                break
        if answer.what not in recent:
            found.append(answer)
    return found


def during(found: list[Said], begun: list[tuple[float, str]]) -> dict[str, str]:
    """What had been done last when the answers were given, and when and how often they were wrong."""
    groups: dict[str, list[Said]] = {}
    for said in found:
        number, name = max((number, name) for number, (when, name) in enumerate(begun) if when <= said.begin)
        groups.setdefault(f"{number} {name}", []).append(said)
    first = {f"{number} {name}": when for number, (when, name) in enumerate(begun)}
    return {
        key: f"{len(group)} × {group[0].what}, {group[0].begin - first[key]:.2f} to {group[-1].end - first[key]:.2f} s"
        for key, group in groups.items()
    }


class Case:
    """A server of two models with its port of health, and everybody who asks."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.frozen: set[str] = set()  # what was stopped: nothing is served
        ports = rig.server.ports
        triton, port = f"127.0.0.1:{ports.http}", str(ports.health)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "inflight.control", "health", "--port", port, "--triton", triton, "--model", "llm"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.DEVNULL,
        )
        self._health = HttpClient(f"127.0.0.1:{ports.health}", timeout_s=5.0)
        self._triton = HttpClient(triton, timeout_s=0.5)
        self.until(True, within_s=20.0)
        self.truth = Witness(self.is_true, 0.01)
        self.live_truth = Witness(lambda: "triton" not in self.frozen, 0.005)
        time.sleep(2 * LATE_S)  # what was true in the second before the first answer has to be known, too
        self.askers = [Witness(lambda: self.says("/ready/llm"), 0.002), Witness(lambda: self.says("/ready"), 0.002)]
        self.living = Witness(lambda: self.says("/live"), 0.02)

    def says(self, path: str = "/ready") -> bool:
        status, _ = self._health.call("GET", path)
        assert status in (200, 503)
        return status == 200

    def is_true(self) -> bool:
        """Whether the model serves, asked directly."""
        if self.frozen:
            return False
        try:
            return bool(self.rig.ask("status", timeout_s=0.5)["ready"]) and self._triton_has_it()
        except (OSError, ValueError, http.client.HTTPException, psutil.NoSuchProcess):
            return False

    def _triton_has_it(self) -> bool:
        return self._triton.call("GET", "/v2/models/llm/ready")[0] == 200

    def until(self, ready: bool, within_s: float) -> float:
        began = time.monotonic()
        while True:
            with contextlib.suppress(OSError):
                if self.says() == ready:
                    return time.monotonic() - began
            assert time.monotonic() - began < within_s, f"health does not become {ready}"
            time.sleep(0.01)

    @contextlib.contextmanager
    def stopped(self, what: str, pid: int) -> Iterator[None]:
        os.kill(pid, signal.SIGSTOP)
        self.frozen.add(what)
        try:
            yield
        finally:
            self.frozen.discard(what)
            os.kill(pid, signal.SIGCONT)

    def stub(self) -> int:
        """The process of the model's Python."""
        engine = self.rig.engine_pid()
        return int(open(f"/proc/{engine}/stat", encoding="utf-8").read().rpartition(")")[2].split()[1])

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.process.wait, 10.0)
            stack.callback(self.process.terminate)
            for witness in (*self.askers, self.living, self.truth, self.live_truth):
                stack.callback(witness.stop)


def kill_engine(case: Case) -> float:
    case.rig.signal_engine(signal.SIGKILL)
    noticed = case.until(False, 2.0)
    case.until(True, 30.0)
    return noticed


def hang_engine(case: Case) -> float:
    case.rig.signal_engine(signal.SIGSTOP)
    noticed = case.until(False, STALL_MS / 1000 + 2.0) - STALL_MS / 1000
    case.until(True, 30.0)
    return noticed


def stop_stub(case: Case) -> float:
    with case.stopped("stub", case.stub()):
        noticed = case.until(False, 2.0)
        time.sleep(FROZEN_S)
    case.until(True, 10.0)
    return noticed


def stop_triton(case: Case) -> float:
    with case.stopped("triton", case.rig.server.pid):
        noticed = case.until(False, 2.0)
        time.sleep(FROZEN_S)
    case.until(True, 10.0)
    return noticed


def drain(case: Case) -> float:
    ordering = threading.Thread(target=case.rig.ask, args=("drain",), kwargs={"notice_ms": 500, "timeout_ms": 500})
    ordering.start()
    noticed = case.until(False, 2.0)
    ordering.join(10.0)
    case.rig.ask("undrain")
    case.until(True, 2.0)
    return noticed


def unload(case: Case) -> float:
    client = HttpClient(case.rig.http)
    assert client.call("POST", "/v2/repository/models/llm/unload", json.dumps({}).encode())[0] == 200
    noticed = case.until(False, 2.0)
    time.sleep(0.5)
    assert client.call("POST", "/v2/repository/models/llm/load", json.dumps({}).encode())[0] == 200
    case.until(True, 30.0)
    return noticed


Act = Callable[[Case], float]
SHORT: list[Act] = [drain, unload, kill_engine]
LONG: list[Act] = [*SHORT, hang_engine, stop_stub, stop_triton, drain, kill_engine, unload]


@pytest.mark.parametrize(
    ("acts", "least"),
    [
        pytest.param(SHORT, 500, id="short", marks=pytest.mark.full),
        pytest.param(LONG, 10_000, id="long", marks=pytest.mark.full),
    ],
)
def test_health_is_right_within_a_second_whatever_happens(
    acts: list[Act], least: int, open_rig: OpenRig, report: Report
) -> None:
    parameters = {"stall_timeout_ms": STALL_MS, "max_restarts": 100, "engine_options": {"step_ms": 5}}
    rig = open_rig({"llm": parameters, "other": {}})
    begun = [(time.monotonic(), "the start")]
    case = Case(rig)
    noticed: list[tuple[str, float]] = []
    try:
        while True:
            for act in acts:
                begun.append((time.monotonic(), act.__name__))
                noticed.append((act.__name__, act(case)))
                time.sleep(0.5)
            if sum(len(asker.said) for asker in case.askers) >= least:
                break
    finally:
        case.close()
    answers = [said for asker in case.askers for said in asker.said]
    assert len(answers) >= least
    assert {said.what for said in answers} == {True, False}
    wrongs = {
        "/ready/llm": wrong(case.askers[0].said, case.truth.said),
        "/ready": wrong(case.askers[1].said, case.truth.said),
        "/live": wrong(case.living.said, case.live_truth.said),
    }
    assert {path: during(found, begun) for path, found in wrongs.items()} == {path: {} for path in wrongs}
    slowest = max(said.end - said.begin for said in [*answers, *case.living.said])
    assert slowest < SLOW_S
    latest = max(noticed, key=lambda each: each[1])
    report(
        f"{len(answers)} answers over {len(noticed)} events, 0 wrong for more than {LATE_S:g} s; the slowest took "
        f"{slowest * 1000:.0f} ms; noticed latest: {latest[0]} after {latest[1]:.2f} s"
    )
