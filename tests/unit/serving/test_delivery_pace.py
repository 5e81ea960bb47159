"""The reader gives way to the senders while many streams wait for one, and never for long."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from inflight.serving.delivery import BACKLOG_STREAMS, PACE_S, Delivery, LiveStream
from inflight.serving.metrics import Metrics

pytestmark = pytest.mark.fast


def waiting(count: int) -> Delivery:
    """A delivery whose senders do not run, with that many streams queued for one."""
    delivery = Delivery(2, Metrics(), {})
    stream: Any = SimpleNamespace(request=SimpleNamespace(stream=True, stops=()))
    responder: Any = None
    for number in range(count):
        delivery.push_token(LiveStream(number, stream, responder), 7, time.monotonic_ns())
    return delivery


def seconds_of(delivery: Delivery) -> float:
    begin = time.monotonic()
    delivery.pace()
    return time.monotonic() - begin


def test_a_few_waiting_streams_do_not_stop_the_reader() -> None:
    assert seconds_of(waiting(BACKLOG_STREAMS)) < PACE_S / 2


def test_many_stop_it_for_a_moment_only() -> None:
    assert PACE_S <= seconds_of(waiting(BACKLOG_STREAMS + 1)) < 1.0


def test_it_goes_on_as_soon_as_the_senders_have_caught_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inflight.serving.delivery.PACE_S", 10.0)
    delivery = waiting(BACKLOG_STREAMS + 1)
    threading.Timer(0.05, delivery._ready.get).start()
    assert 0.04 < seconds_of(delivery) < 5.0
