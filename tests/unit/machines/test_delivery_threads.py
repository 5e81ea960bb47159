"""The same core with its real threads, under a scheduler that switches them as often as it can."""

from __future__ import annotations

import itertools
import queue
import random
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from inflight.engine_process import frames
from inflight.engine_process.link import LinkLost
from inflight.engine_process.supervisor import Health
from inflight.errors import unavailable
from inflight.guides.service import GuideLimits
from tests.unit.machines.delivery_fakes import CheckProcess, FakeEngine
from tests.unit.machines.delivery_model import Core

pytestmark = pytest.mark.fast

SECONDS = 2.0
SETTLE_S = 20.0


@pytest.fixture(autouse=True)
def restless_threads() -> Iterator[None]:
    """Switch threads every few microseconds, so that most interleavings come up."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


class Threads(Core):
    """A core whose threads run, and an engine with a thread of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__(sender_threads=3, metrics_interval_ms=10)
        self.random = random.Random(seed)
        self._commands: queue.SimpleQueue[tuple[FakeEngine, frames.ToEngine]] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._reader = threading.Thread(target=self._engine_thread, daemon=True)
        for part in (self.delivery, self.dispatcher, self.backend._pool, self.backend._poller, self.backend._flusher):
            part.start()  # type: ignore[attr-defined]
        self._reader.start()
        guides = self.backend._guides
        guides._process = CheckProcess(lambda: time.sleep(0.002))  # type: ignore[assignment]
        guides._limits = GuideLimits(patience_s=0.02, known=3)

    def engine_comes_up(self, **changes: Any) -> FakeEngine:
        """An engine whose commands wait in a queue, as in a socket."""
        engine = super().engine_comes_up(**changes)
        take = engine.send

        def send(message: frames.ToEngine) -> None:
            if engine.lost:
                raise LinkLost
            self._commands.put((engine, message))

        engine.obey = take  # type: ignore[attr-defined]
        engine.send = send  # type: ignore[method-assign]
        return engine

    def _engine_thread(self) -> None:
        chance = random.Random(1)
        while not self._ending.is_set():
            while not self._commands.empty():
                engine, message = self._commands.get()
                if not engine.lost:
                    engine.obey(message)  # type: ignore[attr-defined]
            engine = self.engine
            if not engine.lost:
                iteration = engine.step(lambda *_: chance.choice((0, 1, 1, 1, 2)))
                if iteration.outputs or iteration.ids:
                    self.backend.on_outputs(iteration)
            time.sleep(0.0002)

    def meanwhile(self) -> None:
        """A send takes a moment."""
        if self.random.random() < 0.3:
            time.sleep(0.0003)

    def a_client(self) -> None:
        """One request of a random kind, whose client may leave, or whom Triton may fail."""
        chance = self.random
        values: dict[str, Any] = {"deadline_ms": chance.choice((1, 5, 50))} if chance.random() < 0.2 else {}
        if chance.random() < 0.3:
            guide = chance.choice(("a", "b", "c", "d", "e", "bad"))
            values |= {"guided_decoding_guide_type": "regex", "guided_decoding_guide": guide}
        record = self.request_arrives(
            text_input=chance.choice(("hello", "hello", "hello " * 12, "")),
            stream=chance.random() < 0.7,
            max_tokens=chance.choice((0, 1, 4, 9)),
            num_return_sequences=chance.choice((1, 1, 2)),
            stop_words=chance.choice(([], ["cd"], ["zz"])),
            **values,
        )
        if chance.random() < 0.2:
            record.gone = True
        elif chance.random() < 0.05:
            record.breaks = chance.choice((1, 2))

    def restart(self) -> None:
        """The engine dies, and another comes."""
        self.engine_is_lost()
        time.sleep(0.002)
        self.engine_comes_up()

    def engine_is_lost(self) -> None:
        """Its requests are kept: the thread of the engine may be looking at them."""
        self.engine.lost = True
        self.backend._supervisor.health = Health.RESTARTING
        self.backend.on_engine_down("the engine was lost")

    def at_rest(self) -> bool:
        """Whether nothing is under way any more."""
        status = self.backend.status()
        return not any(status[name] for name in ("under_way", "running", "waiting", "blocks_reserved"))

    def end(self) -> None:
        """Stop the threads."""
        self._ending.set()
        self._reader.join(5.0)
        self.backend._guides.stop()
        self.backend._pool.close(unavailable("the test is over"), 5.0)
        self.backend._poller.stop(5.0)
        self.dispatcher.stop(5.0)
        self.delivery.stop(5.0)
        self.backend._flusher.stop(5.0)
        self.close()


@pytest.mark.parametrize(("ending", "seed"), [("unload", 1), ("drain", 2), ("engine lost", 3)])
def test_every_request_ends_once_with_real_threads(ending: str, seed: int) -> None:
    core = Threads(seed)
    give_up = time.monotonic() + SECONDS
    try:
        for number in itertools.count():
            core.a_client()
            if number % 300 == 299:
                core.restart()
            if time.monotonic() > give_up:
                break
            time.sleep(0.0005)
        if ending == "drain":
            assert core.backend.drain(100, 0)["left"] == 0
        elif ending == "engine lost":
            core.engine_is_lost()
        else:
            core.dispatcher.close(unavailable("the test is over"))
        give_up = time.monotonic() + SETTLE_S
        while not core.at_rest() and time.monotonic() < give_up:
            time.sleep(0.01)
    finally:
        core.end()
    assert len(core.records) > 200
    core.engine.requests.clear()
    core.check_ends()
    core.check_counters()
