"""A request can be found: one line for each that has ended, however it ended, and its id and trace in every other."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from inflight.backend.listeners import is_on, listeners
from inflight.engines.base import Capability
from inflight.errors import LoadError
from inflight.identity import Identity, Trace
from inflight.request.parse import RawRequest
from inflight.serving import access_log
from inflight.serving.access_log import ON, AccessLog
from tests.unit.machines.delivery_fakes import FakeResponder, Record
from tests.unit.machines.delivery_model import World

pytestmark = pytest.mark.fast

TRACE = Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", True)
SECRET = "hello hello"


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    made.backend._listeners = made.backend._observation.listeners = (AccessLog("llm"),)
    logging.disable(logging.NOTSET)
    yield made
    made.backend._stop_listeners()
    made.close()


def send(world: World, identity: Identity, **values: Any) -> Record:
    tensors: dict[str, Any] = {"text_input": [SECRET.encode()]} | {name: [value] for name, value in values.items()}
    record = Record(streamed=False)
    world.records.append(record)
    world.backend.submit(RawRequest(tensors, identity=identity), FakeResponder(record, world.meanwhile))
    return record


def lines(caplog: pytest.LogCaptureFixture) -> dict[str, dict[str, Any]]:
    """By the client's id; each request has one."""
    written = [json.loads(record.message) for record in caplog.records if record.name == "inflight.access"]
    assert len({line["id"] for line in written}) == len(written)
    return {line["id"]: line for line in written}


def test_every_end_is_one_line(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.engine_comes_up(capabilities=frozenset({Capability.STREAMING}))
    with caplog.at_level(logging.INFO):
        send(world, Identity("whole", TRACE), max_tokens=3)
        send(world, Identity("invalid"), max_tokens=3, temperature=-1.0)
        send(world, Identity("unsupported"), max_tokens=3, lora_name=b"x")
        send(world, Identity("late"), max_tokens=9, deadline_ms=30)
        send(world, Identity("gone"), max_tokens=9, ignore_eos=True).gone = True
        world.clock.sleep(0.05)
        world.dispatcher_thread()
        world.settle()
        world.drain(0)
        send(world, Identity("draining"), max_tokens=3)
        world.backend._stop_listeners()
    found = lines(caplog)
    whole = found["whole"]
    assert (whole["trace"], whole["model"], whole["status"], whole["finish"]) == (TRACE.trace_id, "llm", "ok", "length")
    numbers = {name: line["engine_id"] for name, line in found.items()}
    assert (numbers["whole"], numbers["invalid"], numbers["draining"]) == (1, None, None)
    assert len(set(numbers.values())) == 4, "the engine's log has these"
    assert (whole["tokens_in"], whole["tokens_out"]) == (world.streams[0].num_input_tokens, 3)
    assert 0 < whole["queue_ms"] <= whole["ttft_ms"] <= whole["duration_ms"]
    assert {name: line["status"] for name, line in found.items()} == {
        "whole": "ok",
        "invalid": "invalid_arg",
        "unsupported": "unsupported",
        "late": "unavailable",
        "gone": "cancelled",
        "draining": "unavailable",
    }
    assert found["late"]["duration_ms"] >= 30.0, "from its arrival, not from its refusal"
    assert found["late"]["ttft_ms"] is found["late"]["finish"] is found["invalid"]["trace"] is None
    assert SECRET not in caplog.text


def test_a_log_line_names_the_client_and_the_trace(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        send(world, Identity("abc", TRACE), max_tokens=3)
        while world.pool.work:
            world.parse_thread()

        def append(*_: object) -> None:
            raise RuntimeError("a bug of ours")

        world.live()[0].stream.append = append  # type: ignore[method-assign, assignment]
        world.settle()
    said = [record.getMessage() for record in caplog.records if record.name != "inflight.access"]
    assert said
    assert all(f"request abc (trace {TRACE.trace_id})" in each for each in said)


def test_a_listener_that_fails_harms_nobody(world: World) -> None:
    def broken(_: object) -> None:
        raise OSError("the disk is full")

    world.backend._observation.listeners = (broken,)
    record = send(world, Identity("abc"), max_tokens=3)
    refused = send(world, Identity("def"), temperature=-1.0)
    world.settle()
    assert (record.outcome, refused.outcome) == ("length", "invalid")


def test_nobody_is_told_unless_the_environment_asks() -> None:
    assert listeners("llm", {}) == listeners("llm", {ON: "0"}) == ()
    (made,) = listeners("llm", {ON: "1"})
    made.stop(5.0)
    assert isinstance(made, AccessLog)
    assert is_on("X", {"X": " True "})
    with pytest.raises(LoadError, match="INFLIGHT_ACCESS_LOG must be 1 or 0, but is 'yes please'"):
        listeners("llm", {ON: "yes please"})


def test_a_log_that_nobody_reads_keeps_no_stream(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a full pipe does, behind which the reader has stopped; what does not fit is counted."""
    may_go, inside = threading.Event(), threading.Event()

    def write(*_: object) -> None:
        inside.set()
        may_go.wait(20.0)

    monkeypatch.setattr(access_log.log, "info", write)
    made = AccessLog("llm", most_waiting=3)
    world.backend._state._listeners = world.backend._observation.listeners = (made,)
    send(world, Identity("first"), temperature=-1.0)
    world.settle()
    assert inside.wait(10.0)
    records = [send(world, Identity(str(number)), max_tokens=2) for number in range(5)]
    world.settle()
    assert {record.outcome for record in records} == {"length"}
    assert world.backend.status()["access_log_lost"] == 2
    may_go.set()
    made.stop(10.0)
    assert world.backend.status()["access_log_lines"] == 4
