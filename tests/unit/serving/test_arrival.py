"""From its arrival a request ends at its deadline and when its client leaves, whatever it waits for: a thread that
parses, the parsing itself, the check of its guide.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inflight.errors import RequestError, invalid, unavailable
from inflight.guides import service as guides
from inflight.guides.frames import Check, Verdict
from inflight.identity import Identity
from inflight.request.parse import RawRequest
from inflight.serving.arrival import Arrival
from inflight.serving.parsing import LANES, Work
from tests.unit.machines.delivery_fakes import FakeResponder, Record
from tests.unit.machines.delivery_model import Core

pytestmark = pytest.mark.fast

CHECK_S = 1.5  # what one check of a guide takes here
SOON_S = 1.2  # what an answer to a deadline of 100 ms may take on a busy machine


class SlowProcess:
    """Checks guides slowly."""

    refusal = ""
    vocab_size = 0
    pid = 1

    def __init__(self, *_: Any) -> None:
        self.ended = threading.Event()

    def wait_ready(self) -> None:
        """At once."""

    def crashed(self) -> bool:
        return False

    def check(self, check: Check, limit_s: float) -> Verdict:
        self.ended.wait(CHECK_S)
        return Verdict(grammar=f"root ::= {check.text}")

    def interrupt(self) -> None:
        self.ended.set()

    close = interrupt


class Running(Core):
    """The backend with its real threads and guide service, without an engine that steps."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(**changes)
        for part in (self.delivery, self.dispatcher, self.backend._pool, self.backend._poller):
            part.start()  # type: ignore[attr-defined]

    def arrives(self, **values: Any) -> tuple[Record, Callable[[], float]]:
        """A request; its record, and what waits for its end and says how long it took, in seconds."""
        began = time.monotonic()
        record = self.request_arrives(**values)

        def took(limit_s: float = 20.0) -> float:
            while not record.terminals and time.monotonic() < began + limit_s:
                time.sleep(0.002)
            return time.monotonic() - began

        return record, took

    def parsing_stands_still(self) -> threading.Event:
        """All threads of the pool are busy until the event is set."""
        go_on, entered = threading.Event(), threading.Semaphore(0)

        def wait() -> None:
            entered.release()
            go_on.wait(20.0)

        for cost in (2 * LANES[-1], *reversed(LANES)):
            self.backend._pool.submit(Work(wait, lambda _: None, 0.0, cost, priority=100))
            entered.acquire()
        return go_on

    def comes_to_rest(self) -> None:
        """Everything has come to its end."""
        give_up = time.monotonic() + 20.0
        while self.backend.status()["under_way"] and time.monotonic() < give_up:
            time.sleep(0.01)
        self.check_ends()

    def end(self) -> None:
        """Stop the threads, once everything has come to its end."""
        self.comes_to_rest()
        self.backend._guides.stop()
        self.backend._pool.close(unavailable("the test is over"), 5.0)
        self.backend._poller.stop(5.0)
        self.dispatcher.stop(5.0)
        self.delivery.stop(5.0)
        self.close()


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(guides, "GuideProcess", SlowProcess)
    made = Running()
    yield made
    made.end()


def guided(number: int = 0, **values: Any) -> dict[str, Any]:
    return {"guided_decoding_guide_type": "regex", "guided_decoding_guide": f"a{number}", **values}


def test_a_deadline_holds_while_guides_are_checked(core: Running) -> None:
    asked = [core.arrives(**guided(number, deadline_ms=100)) for number in range(4)]
    times = [took() for _, took in asked]
    assert [record.outcome for record, _ in asked] == ["unavailable"] * 4
    assert 0.1 <= min(times) <= max(times) < SOON_S, times
    assert core.backend._guides.checks == 1  # the three that waited were never checked


def test_a_client_that_leaves_while_its_guide_is_checked_is_noticed(core: Running) -> None:
    record, took = core.arrives(**guided())
    other, other_took = core.arrives(**guided(deadline_ms=10_000))
    time.sleep(0.2)
    assert not record.terminals
    record.gone = True
    assert took() < 0.2 + SOON_S
    assert record.outcome == "cancelled"
    assert not other.terminals  # the same guide, and it waits on
    other.gone = True
    other_took()


def test_who_has_left_makes_room_at_once(core: Running) -> None:
    asked = [core.arrives(**guided(number)) for number in range(3)]
    time.sleep(0.1)
    for record, _ in asked:
        record.gone = True
    assert max(took() for _, took in asked) < 0.1 + SOON_S
    assert core.backend.status()["under_way"] == 0


@pytest.mark.parametrize(
    "where", ["tensor", "sampling_parameters", "escaped", "request parameter", "Triton's timeout", "model parameter"]
)
def test_a_deadline_holds_before_anything_is_parsed(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    core = Running(default_deadline_ms=100 if where == "model parameter" else 0)
    go_on = core.parsing_stands_still()
    tensors: dict[str, Any] = {"text_input": [b"hello"]}
    if where == "tensor":
        tensors["deadline_ms"] = [100]
    elif where == "sampling_parameters":
        tensors["sampling_parameters"] = [json.dumps({"n": 1, "deadline_ms": "100"}).encode()]
    elif where == "escaped":
        tensors["sampling_parameters"] = [b'{"deadlin\\u0065_ms": 100}']
    parameters = {"deadline_ms": 100} if where == "request parameter" else {}
    timeout_us = 100_000 if where == "Triton's timeout" else 0
    record = Record()
    core.records.append(record)
    began = time.monotonic()
    core.backend.submit(RawRequest(tensors, parameters, timeout_us, "r1"), FakeResponder(record, lambda: None))
    while not record.terminals and time.monotonic() < began + 5.0:
        time.sleep(0.002)
    took = time.monotonic() - began
    assert record.outcome == "unavailable"
    assert 0.1 <= took < SOON_S
    go_on.set()
    core.end()


@pytest.mark.parametrize("deadline", [b'{"deadline_ms": "soon"}', b'{"deadline_ms": 0}', b'{"deadline_ms":', b"\xff"])
def test_a_deadline_that_is_none_is_refused_by_parsing(core: Running, deadline: bytes) -> None:
    record = Record()
    core.records.append(record)
    raw = RawRequest({"text_input": [b"hello"], "sampling_parameters": [deadline]}, identity=Identity("r1"))
    core.backend.submit(raw, FakeResponder(record, lambda: None))
    give_up = time.monotonic() + 20.0
    while not record.terminals and time.monotonic() < give_up:
        time.sleep(0.002)
    assert record.outcome == "invalid"


def test_a_client_that_leaves_before_it_is_parsed_is_noticed(core: Running) -> None:
    go_on = core.parsing_stands_still()
    record, took = core.arrives()
    record.gone = True
    assert took() < SOON_S
    assert record.outcome == "cancelled"
    go_on.set()


def test_what_ends_while_it_is_parsed_becomes_no_stream(core: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    build = core.backend._reader._builder.build

    def slow_build(*arguments: Any) -> Any:
        go_on.wait(20.0)
        return build(*arguments)

    monkeypatch.setattr(core.backend._reader._builder, "build", slow_build)
    left, left_took = core.arrives()
    late, late_took = core.arrives(deadline_ms=100)
    left.gone = True
    assert left_took() < SOON_S
    assert late_took() < SOON_S
    assert (left.outcome, late.outcome) == ("cancelled", "unavailable")
    go_on.set()
    core.comes_to_rest()
    assert not core.streams


def test_an_unload_ends_what_waits(core: Running) -> None:
    go_on = core.parsing_stands_still()
    asked = [core.arrives(), core.arrives(**guided())]
    core.backend._close(invalid("x", "y"))
    assert max(took() for _, took in asked) < SOON_S
    go_on.set()


# -- by itself ---------------------------------------------------------------------------------------------------------


def make(record: Record, said: list[RequestError]) -> Arrival:
    return Arrival(Identity("r"), FakeResponder(record, lambda: None), lambda _, error, *__: said.append(error), 0)


def test_it_ends_once() -> None:
    said: list[RequestError] = []
    arrival = make(Record(), said)
    assert arrival.end(invalid("x", "y"))
    assert not arrival.end(invalid("x", "z"))
    assert arrival.hand_over() is None
    assert arrival.poll_cancelled()
    assert [error.message for error in said] == ["x y"]


def test_what_is_handed_over_is_the_streams_to_end() -> None:
    said: list[RequestError] = []
    record = Record(gone=True)
    arrival = make(record, said)
    assert arrival.hand_over() is not None
    arrival.end_by_deadline()
    assert arrival.poll_cancelled()
    assert not said
    assert not record.violations


def test_whoever_asks_late_hears_that_it_was_left() -> None:
    heard: list[int] = []
    arrival = make(Record(), [])
    arrival.when_left(lambda: heard.append(1))
    arrival.end(invalid("x", "y"))
    arrival.when_left(lambda: heard.append(2))
    assert heard == [1, 2]
