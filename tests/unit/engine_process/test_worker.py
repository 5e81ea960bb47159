"""The two ends of the engine's socket tell the watchdog who waits for whom."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from inflight.engine_process import frames
from inflight.engine_process.framing import FrameBuffer
from inflight.engine_process.link import EngineLink
from inflight.engine_process.watchdog import StatePage, Watchdog, WorkerState, beat_of, patience_with
from inflight.engine_process.worker import Worker
from inflight.engines.base import EngineOutput, EngineRequest, EngineStats, SamplingParams

pytestmark = pytest.mark.fast

LONG = 4 << 20  # tokens of one output: more than any socket's buffers hold


class Talkative:
    """An engine whose every step says more than fits into the socket."""

    def add(self, request: EngineRequest) -> None:
        pass

    def step(self, timeout_s: float) -> list[EngineOutput]:
        return [EngineOutput(1, 0, [7] * LONG)]

    def stats(self) -> EngineStats:
        return EngineStats()


def wait_for(page: StatePage, state: WorkerState) -> None:
    give_up = time.monotonic() + 10
    while page.read()[0] is not state:
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_full_socket_is_no_stall(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    page = StatePage(tmp_path / "state", create=True)
    engine: Any = Talkative()
    thread = threading.Thread(target=Worker(engine, theirs, page).run, daemon=True)
    request = EngineRequest(request_id=1, token_ids=[1], sampling=SamplingParams(max_tokens=1))
    ours.sendall(frames.encode(frames.Add(request)))
    thread.start()
    wait_for(page, WorkerState.SENDING)
    time.sleep(0.2)
    state, beat_ns = page.read()
    assert state is WorkerState.SENDING
    ours.settimeout(10)
    while page.read()[1] == beat_ns:  # it goes on as soon as somebody reads
        assert ours.recv(1 << 20)
    ours.sendall(frames.encode(frames.Shutdown()))
    ours.settimeout(0.1)
    give_up = time.monotonic() + 10
    while thread.is_alive() and time.monotonic() < give_up:
        with contextlib.suppress(TimeoutError):
            ours.recv(1 << 20)
    assert not thread.is_alive()


class Adapters:
    """An engine that reads for a while whenever a request is added."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.added = 0

    def add(self, request: EngineRequest) -> None:
        time.sleep(self.seconds)
        self.added += 1

    def step(self, timeout_s: float) -> list[EngineOutput]:
        return []

    def stats(self) -> EngineStats:
        return EngineStats()


@pytest.mark.parametrize(("count", "seconds"), [(1, 0.9), (256, 0.004)])
def test_adding_is_no_stall(tmp_path: Path, count: int, seconds: float) -> None:
    """As the supervisor watches it, with a stall time of 0.3 s: one slow add, and many in one read."""
    ours, theirs = socket.socketpair()
    page = StatePage(tmp_path / "state", create=True)
    engine: Any = Adapters(seconds)
    adds = [EngineRequest(request_id=n, token_ids=[1], sampling=SamplingParams(max_tokens=1)) for n in range(count)]
    ours.sendall(b"".join(frames.encode(frames.Add(request)) for request in adds))
    thread = threading.Thread(target=Worker(engine, theirs, page).run, daemon=True)
    watchdog = Watchdog(0.3, 0.02, time.monotonic())
    thread.start()
    give_up = time.monotonic() + 20
    while engine.added < count:
        time.sleep(0.02)
        state, beat_ns = page.read()
        assert beat_ns == 0 or not watchdog.tick(time.monotonic(), beat_ns / 1e9, patience_with(state)), state
        assert time.monotonic() < give_up
    ours.close()
    thread.join(10)
    assert not thread.is_alive()


def test_idling_is_no_stall(tmp_path: Path) -> None:
    """An engine without work, at the shortest stall time that `stall_timeout_ms` may name."""
    ours, theirs = socket.socketpair()
    page = StatePage(tmp_path / "state", create=True)
    engine: Any = Adapters(0.0)
    thread = threading.Thread(target=Worker(engine, theirs, page).run, daemon=True)
    watchdog = Watchdog(0.1, 0.02, time.monotonic())
    thread.start()
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        time.sleep(0.02)
        state, beat_ns = page.read()
        now = time.monotonic()
        beat = beat_of(state, beat_ns / 1e9, now, now)
        assert beat is None or not watchdog.tick(now, beat, patience_with(state)), now - beat_ns / 1e9
    ours.close()
    thread.join(10)
    assert not thread.is_alive()


class Slow:
    """A handler that takes its time over every iteration."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def on_outputs(self, message: frames.Outputs) -> None:
        self.begun.set()
        assert self.go_on.wait(10)

    def on_refused(self, message: frames.Refused) -> None:
        pass


def test_the_link_tells_whether_it_waits_for_the_engine() -> None:
    ours, theirs = socket.socketpair()
    handler = Slow()
    link = EngineLink(ours, FrameBuffer(frames.MAX_FRAME_BYTES), handler)
    began = link.waiting_since
    assert began is not None
    link.start()
    theirs.sendall(frames.encode(frames.Outputs([], EngineStats())))
    assert handler.begun.wait(10)
    assert link.waiting_since is None
    handler.go_on.set()
    give_up = time.monotonic() + 10
    while link.waiting_since is None:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    assert link.waiting_since > began
    theirs.close()
    link.close()
