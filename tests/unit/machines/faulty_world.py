"""The whole core of one model with the real worker between it and an engine that misbehaves, without threads."""

from __future__ import annotations

import contextlib
import socket
from typing import Any
from unittest import mock

from inflight.engine_process import frames
from inflight.engine_process.framing import FrameBuffer
from inflight.engine_process.link import LinkLost
from inflight.engine_process.supervisor import Health
from inflight.engine_process.watchdog import WorkerState
from inflight.engine_process.worker import Worker
from inflight.engines.base import EngineInfo
from tests.doubles.misbehaving import MisbehavingEngine
from tests.unit.machines.delivery_fakes import LETTERS
from tests.unit.machines.delivery_model import World
from tests.unit.machines.strategies import info

FRAME_BYTES = 16 << 10  # the most that a frame may hold here, so that a huge one need not be


class Page:
    """The worker's page, which nobody watches."""

    def __init__(self) -> None:
        self.states: list[WorkerState] = []

    def write(self, state: WorkerState, now_ns: int) -> None:
        """Remember the state alone."""
        self.states.append(state)


class Bridge:
    """The link to the worker, as the backend knows it, and the worker itself."""

    def __init__(self, engine: MisbehavingEngine) -> None:
        self.ours, theirs = socket.socketpair()
        for each in (self.ours, theirs):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.engine = engine
        self.info: EngineInfo = engine.info
        self.lost = False
        self.worker = Worker(engine, theirs, Page())  # type: ignore[arg-type]
        self._theirs = theirs
        self._buffer = FrameBuffer(frames.MAX_FRAME_BYTES)

    @property
    def requests(self) -> dict[int, Any]:
        """What the engine has."""
        return self.engine.requests

    @property
    def made(self) -> object:
        """What the worker has not seen the end of."""
        return len(self.worker._roster)

    @property
    def is_lost(self) -> bool:
        """As `EngineLink.is_lost`."""
        return self.lost

    @property
    def is_silent(self) -> bool:
        """As `EngineLink.is_silent`."""
        return self.lost

    def send(self, message: frames.ToEngine) -> None:
        """As `EngineLink.send`."""
        if self.lost:
            raise LinkLost
        self.ours.sendall(frames.encode(message))

    def turn(self) -> list[frames.FromEngine]:
        """One round of the worker; what the reader thread hears of it."""
        self.worker.turn()
        bodies = []
        with contextlib.suppress(BlockingIOError):
            while data := self.ours.recv(1 << 20, socket.MSG_DONTWAIT):
                bodies += self._buffer.feed(data)
        return [frames.decode_from_engine(body) for body in bodies]

    def close(self) -> None:
        """Both ends."""
        self.ours.close()
        self._theirs.close()


class FaultyWorld(World):
    """A world whose engine is one of `tests/doubles/misbehaving.py`."""

    def __init__(self, **changes: Any) -> None:
        self.bridges: list[Bridge] = []
        self.losses = 0
        self._more = [
            mock.patch("inflight.engine_process.frames.MAX_FRAME_BYTES", FRAME_BYTES),
            mock.patch("inflight.engine_process.worker.IDLE_WAIT_S", 0.0),
            mock.patch("inflight.engine_process.worker.PAUSE_S", 0.0),
            mock.patch("tests.unit.machines.delivery_model.MAX_QUEUE", 200),  # nobody is refused for want of room
        ]
        for patch in self._more:
            patch.start()
        super().__init__(**changes)

    def close(self) -> None:
        """Undo the patches."""
        for patch in self._more:
            patch.stop()
        for bridge in self.bridges:
            bridge.close()
        super().close()

    def engine_comes_up(self, **changes: Any) -> Any:
        """The supervisor has an engine ready."""
        if not self.bridges:
            self._more.append(mock.patch("inflight.engine_process.worker.time", self.clock))
            self._more[-1].start()
        told = info(max_running=8, blocks_total=40, max_seq_len=128, vocab_size=1000, **changes)
        self.engine = Bridge(MisbehavingEngine(told, LETTERS))  # type: ignore[assignment]
        self.bridges.append(self.engine)  # type: ignore[arg-type]
        self.bridges[-1].engine.takes_time = lambda: self.clock.sleep(0.3)
        self.backend.on_engine_up(self.engine, told)  # type: ignore[arg-type]
        self.backend._supervisor.health = Health.READY
        return self.engine

    def worker_thread(self) -> None:
        """One round of the worker, and of the reader thread. An engine that breaks is lost, and another comes."""
        try:
            messages = self.engine.turn()  # type: ignore[attr-defined]
        except Exception:  # noqa: BLE001 — whatever leaves the worker's loop ends its process
            self.losses += 1
            self.engine.lost = True
            self.backend._supervisor.health = Health.RESTARTING
            self.backend.on_engine_down("the engine was lost")
            self.engine_comes_up()
            return
        for message in messages:
            if isinstance(message, frames.Outputs):
                self.backend.on_outputs(message)
            elif isinstance(message, frames.Refused):
                self.backend.on_refused(message)
            else:
                raise AssertionError(message)

    def settle(self) -> None:
        """Let everything that was begun come to its end, which takes what is forgotten a while."""
        for _ in range(1200):
            while self.pool.work:
                self.parse_thread()
            busy = self.dispatcher_thread()
            self.worker_thread()
            busy = self.sender_thread() or busy or bool(self.engine.made) or bool(self.dispatcher.waiting)
            self.poller_thread()
            self.clock.now += 0.5
            if not busy and not self.live() and self.dispatcher._events.empty() and not self.engine.requests:
                return
        raise AssertionError("it does not come to rest")
