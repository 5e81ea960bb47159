"""Who looks for tokens that wait too long, and that nobody does where none waits; real threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from inflight.answer.stream import Taken
from inflight.engines.base import EngineOutput
from inflight.serving.delivery import LOOK_S, Delivery, LiveStream
from inflight.serving.metrics import Metrics

pytestmark = pytest.mark.fast

GAP_S = 0.1
TIMEOUT_S = 5.0


class OneStream:
    """Notes how many tokens each response has."""

    def __init__(self) -> None:
        self.request = SimpleNamespace(stream=True, stops=())
        self.timing = SimpleNamespace(first_token_ns=0)
        self.sent: list[int] = []
        self.at: list[float] = []
        self.came = threading.Event()
        self._tokens = 0

    def append(self, output: EngineOutput, now_ns: int) -> None:
        self._tokens += len(output.token_ids)

    def take(self) -> Taken:
        self.at.append(time.monotonic())
        self.sent.append(self._tokens)
        self._tokens = 0
        self.came.set()
        return Taken([])


class Looked(Delivery):
    """Counts how often somebody looks."""

    looks = 0

    def _queue_overdue(self, now_ns: int) -> bool:
        self.looks += 1
        return super()._queue_overdue(now_ns)


Served = tuple[Looked, LiveStream, OneStream]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Of 1000 streams one, whose tokens are to have that gap between them."""
    monkeypatch.setattr("inflight.serving.delivery.gap_s", lambda *_: GAP_S)
    stream: Any = OneStream()
    responder: Any = None
    mine = LiveStream(1, stream, responder)
    delivery = Looked(2, Metrics(), {1: mine})
    delivery.start()
    yield delivery, mine, stream
    delivery.stop(TIMEOUT_S)
    assert not any(thread.is_alive() for thread in (delivery._looker, *delivery._threads))


def arrives(served: Served) -> None:
    delivery, mine, stream = served
    stream.came.clear()
    delivery.push_token(mine, 7, time.monotonic_ns())


@pytest.mark.parametrize("kind", ["token", "output"])
def test_a_token_that_no_other_follows_is_sent_when_its_gap_is_over(served: Served, kind: str) -> None:
    delivery, mine, stream = served
    arrives(served)
    assert stream.came.wait(TIMEOUT_S)  # the first one waits for nobody
    if kind == "token":
        arrives(served)
    else:
        stream.came.clear()
        delivery.push(mine, EngineOutput(1, 0, [7]), time.monotonic_ns())
    assert stream.came.wait(TIMEOUT_S)
    waited = stream.at[1] - stream.at[0]
    assert GAP_S / 2 < waited < 2.0, waited  # the machine may be busy; nobody else would ever send it
    assert stream.sent == [1, 1]


def test_every_lull_has_its_look(served: Served) -> None:
    """The look ends when nothing waits, and begins again."""
    for _ in range(3):
        arrives(served)
        assert served[2].came.wait(TIMEOUT_S)
        arrives(served)
        assert served[2].came.wait(TIMEOUT_S)
        time.sleep(GAP_S + 2 * LOOK_S)
    assert sum(served[2].sent) == 6


def test_nobody_looks_while_nothing_waits(served: Served) -> None:
    delivery, _, stream = served
    for _ in range(4):
        arrives(served)  # later than the gap, each of them
        assert stream.came.wait(TIMEOUT_S)
        time.sleep(1.2 * GAP_S)
    assert (stream.sent, delivery.looks) == ([1] * 4, 0)
