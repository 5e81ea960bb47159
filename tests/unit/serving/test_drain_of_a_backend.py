"""A drain of the whole backend with its simulated engine: served, refused, ended, and taken back in every phase."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inflight.backend.model import Backend
from inflight.errors import ErrorCode
from tests.unit.serving.test_oversized import Client, ask, serving

STEP_MS = 10


class Draining:
    """A drain in a thread of its own, as the control socket has it."""

    def __init__(self, backend: Backend, timeout_ms: int, notice_ms: int) -> None:
        self.answer: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._run, args=(backend, timeout_ms, notice_ms), daemon=True)
        self._thread.start()
        until(lambda: backend.status()["draining"])

    def _run(self, backend: Backend, timeout_ms: int, notice_ms: int) -> None:
        self.answer = backend.drain(timeout_ms, notice_ms)

    def wait(self) -> dict[str, Any]:
        self._thread.join(20.0)
        assert not self._thread.is_alive()
        return self.answer


def until(condition: Callable[[], Any]) -> None:
    give_up = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    with serving(
        tmp_path, engine_options={"step_ms": STEP_MS, "max_seq_len": 8192, "max_running": 2}, max_queue_size=5
    ) as made:
        yield made


def outcome(client: Client) -> str:
    client.wait()
    assert client.terminals == 1
    return "served" if client.error is None else client.error.code.name


def phase(backend: Backend) -> str:
    """What status says, which must be one story."""
    status, health = backend.status(), backend.health()
    assert status["ready"] == backend.ready() == health["ready"] == (status["health"] == "ready")
    assert status["draining"] == (status["phase"] != "serving")
    assert not (status["draining"] and status["ready"])
    return str(status["phase"])


def test_everything_is_served_until_the_notice_is_over(backend: Backend) -> None:
    draining = Draining(backend, 20_000, 1500)
    assert (phase(backend), backend.ready()) == ("notice", False)
    assert "serves for" in backend.status()["reason"]
    assert outcome(ask(backend, text_input="in time", max_tokens=1)) == "served"
    running = ask(backend, text_input="in time", max_tokens=250)
    until(lambda: phase(backend) == "refusing")
    assert outcome(ask(backend, text_input="too late", max_tokens=1)) == "UNAVAILABLE"
    assert outcome(running) == "served"
    assert draining.wait() == {"drained": True, "finished": 1, "ended": 0, "left": 0}
    assert (phase(backend), backend.status()["health"]) == ("drained", "drained")


@pytest.mark.parametrize("when", ["notice", "refusing", "drained"])
def test_a_drain_is_taken_back_in_every_phase(backend: Backend, when: str) -> None:
    long = ask(backend, text_input="long", max_tokens=4000, ignore_eos=True)
    until(lambda: backend.status()["running"])
    draining = Draining(backend, 100 if when == "drained" else 60_000, 60_000 if when == "notice" else 0)
    until(lambda: phase(backend) == when)
    if when == "drained":
        assert outcome(long) == "UNAVAILABLE"
        until(lambda: not backend.status()["under_way"])
    answer = backend.undrain()
    assert (answer["undrained"], answer["ready"], phase(backend)) == (True, True, "serving")
    assert draining.wait()["drained"] == (when == "drained")
    assert outcome(ask(backend, text_input="again", max_tokens=1)) == "served"
    assert long.terminals == (when == "drained")
    assert backend.undrain()["undrained"] is False


def test_a_second_order_hurries_the_first(backend: Backend) -> None:
    """SIGTERM after a preStop command, and a person who does not want to wait."""
    first = Draining(backend, 60_000, 60_000)
    began = time.monotonic()
    assert backend.drain(100, 0)["drained"]
    assert first.wait()["drained"]
    assert time.monotonic() - began < 5.0


def test_what_has_ended_is_not_taken_back(backend: Backend) -> None:
    assert backend.drain(100, 0)["drained"]
    backend.retire()
    assert backend.undrain()["error"] == ("a drain cannot be taken back any more: the engine was ended after a drain.")
    assert (backend.ready(), backend.status()["health"]) == (False, "stopped")


def test_a_queue_at_its_limit_is_not_ready(backend: Backend) -> None:
    assert backend.health()["limit"] == 2 + 5
    clients = []
    for number in (2, 5):
        clients += [ask(backend, text_input="x", max_tokens=4000, ignore_eos=True) for _ in range(number)]
        until(lambda: backend.status()["running"] == 2)
    assert (backend.ready(), backend.status()["health"]) == (False, "full")
    late = ask(backend, text_input="x", max_tokens=1).wait()
    assert late.error is not None
    assert late.error.code is ErrorCode.UNAVAILABLE
    assert backend.health()["reason"] in late.error.message
    assert not any(client.terminals for client in clients)
