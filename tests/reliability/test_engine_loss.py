"""Invariant 3: an engine that dies or stalls ends its requests UNAVAILABLE, at once or within the stall time, and is
replaced; nothing hangs, nothing stays reserved, and what is answered afterwards is what was answered before.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.reliability.conftest import OpenRig, Report
from tests.reliability.load import End, Load, drive, make_request, tally
from tests.reliability.rig import Rig

pytestmark = pytest.mark.server

STREAMS = 48
STALL_MS = 1500
DETECTED_S = 1.0  # all clients have their end this long after the loss is noticed
CANARY: dict[str, Any] = {"text_input": "The canary sings", "max_tokens": 24, "seed": 7}


@pytest.fixture(scope="module")
def rig(open_rig: OpenRig) -> Rig:
    """An engine that makes 100 tokens a second per stream, with a short stall time."""
    options = {"step_ms": 10, "max_running": 32}  # 16 of the 48 streams wait in the queue
    parameters = {"engine_options": options, "stall_timeout_ms": STALL_MS, "max_restarts": 100}
    held = {"engine_options": {**options, "max_running": 4}, "restart_hold_ms": 20_000, "max_restarts": 1}
    return open_rig({"llm": {**parameters, "metrics_interval_ms": 100}, "held": {**held, "metrics_interval_ms": 100}})


@pytest.fixture(autouse=True)
def healthy(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test leaves the shared server with an engine and nothing to do."""
    yield
    if "rig" in request.fixturenames:
        rig: Rig = request.getfixturevalue("rig")
        rig.until_healthy()
        rig.assert_nothing_left()


def canary(rig: Rig) -> str:
    """The text of the canary, alone."""
    (end,) = drive(rig.grpc, lambda load: load.all([make_request(**CANARY)]))
    assert end.how == "length", end
    return str(end.text)


async def under_load(load: Load, streams: int, **inputs: Any) -> list[asyncio.Task[End]]:
    """Start streams that would go on for 80 s, and wait until the engine works on them."""
    values = {"max_tokens": 8000, "ignore_eos": True, **inputs}
    tasks = [
        asyncio.ensure_future(load.run(make_request(text_input=f"stream {number}", **values)))
        for number in range(streams)
    ]
    await asyncio.sleep(1.0)
    return tasks


@dataclasses.dataclass(slots=True)
class Loss:
    """What the clients and the metrics saw of one loss; times in seconds after the signal."""

    ends: list[End]
    late: list[End]  # requests that were sent once the loss was noticed
    slowest: float  # until the last stream had its end
    metric: float  # until `inflight_engine_up` was 0


def lose_engine(rig: Rig, number: signal.Signals) -> Loss:
    """Send the engine a signal under load, and wait for the next engine."""

    async def work(load: Load) -> Loss:
        tasks = await under_load(load, STREAMS)
        assert not any(task.done() for task in tasks)
        restarts = rig.status()["restarts"]
        at = await asyncio.to_thread(rig.signal_engine, number)
        await asyncio.to_thread(rig.until, lambda: rig.status()["health"] != "ready", 30.0, 0.005)
        late = await load.all(make_request(text_input="too late", max_tokens=4) for _ in range(4))
        await asyncio.to_thread(rig.until, lambda: rig.metrics()["inflight_engine_up", ""] == 0.0, 10.0)
        metric = time.monotonic() - at
        ends = list(await asyncio.gather(*tasks))
        await asyncio.to_thread(rig.until_healthy, 60.0, restarts + 1)
        return Loss(ends, late, max(end.at for end in ends) - at, metric)

    result: Loss = drive(rig.grpc, work)
    return result


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_a_lost_engine_ends_its_streams_and_is_replaced(rig: Rig, report: Report, number: signal.Signals) -> None:
    before, restarts = canary(rig), rig.metrics()["inflight_engine_restarts_total", ""]
    pid = rig.engine_pid()
    loss = lose_engine(rig, number)
    noticed = 0.0 if number is signal.SIGKILL else STALL_MS / 1000
    assert {end.how for end in loss.ends} == {"UNAVAILABLE"}, tally(loss.ends)
    assert all("again" in end.message for end in loss.ends)
    assert {end.how for end in loss.late} <= {"UNAVAILABLE", "length"}, loss.late  # length: the new engine was there
    assert max(loss.slowest, loss.metric) < noticed + DETECTED_S
    assert rig.engine_pid() != pid
    assert not os.path.exists(f"/proc/{pid}"), "the old engine is still there"
    assert canary(rig) == before
    left = rig.assert_nothing_left()
    samples = rig.metrics()
    assert samples["inflight_engine_up", ""] == 1.0
    assert samples["inflight_engine_restarts_total", ""] == restarts + 1
    report(
        f"{tally(loss.ends)} within {loss.slowest * 1000:.0f} ms, inflight_engine_up 0 within {loss.metric * 1000:.0f} "
        f"ms; sent meanwhile: {tally(loss.late)}; {left}"
    )


def test_only_what_the_engine_had_is_lost_where_requests_are_held(rig: Rig, report: Report) -> None:
    """Four run, eight wait, and more come while no engine is there. The next loss is one too many: its requests end."""

    async def work(load: Load) -> tuple[list[End], list[End], list[End]]:
        running = [make_request("held", text_input=f"r{number}", max_tokens=8000, ignore_eos=True) for number in "1234"]
        tasks = [asyncio.ensure_future(load.run(each)) for each in running]
        await asyncio.to_thread(rig.until_at_work, 4, 4, "held")
        short = [make_request("held", text_input=f"s{number}", max_tokens=8) for number in range(24)]
        waiting = [asyncio.ensure_future(load.run(each)) for each in short[:8]]
        await asyncio.to_thread(rig.until_at_work, 4, 12, "held")
        await asyncio.sleep(0.3)  # until all four have said something: else they would begin anew
        await asyncio.to_thread(rig.signal_engine, signal.SIGKILL, "held")
        await asyncio.to_thread(rig.until, lambda: rig.status("held")["health"] != "ready", 30.0, 0.005)
        lost = list(await asyncio.gather(*tasks))
        answered = list(await load.all(short[8:])) + list(await asyncio.gather(*waiting))
        again = [asyncio.ensure_future(load.run(each)) for each in running]
        await asyncio.to_thread(rig.until_at_work, 4, 4, "held")
        given_up = again + [asyncio.ensure_future(load.run(each)) for each in short]
        await asyncio.to_thread(rig.until_at_work, 4, 28, "held")
        await asyncio.to_thread(rig.signal_engine, signal.SIGKILL, "held")
        return lost, answered, list(await asyncio.gather(*given_up))

    lost, answered, given_up = drive(rig.grpc, work)
    assert [end.how for end in lost] == ["UNAVAILABLE"] * 4, tally(lost)
    assert [(end.how, end.tokens) for end in answered] == [("length", 8)] * 24, tally(answered)
    assert [end.how for end in given_up] == ["UNAVAILABLE"] * 28, tally(given_up)
    assert all("not started again" in end.message for end in given_up[4:]), given_up[-1]
    assert rig.flushed("held", 0.1)["inflight_requests_total", "unavailable"] == 32
    left = rig.assert_nothing_left("held")
    report(f"lost with the engine: {tally(lost)}; held: {tally(answered)}; given up: {tally(given_up)}; {left}")


@pytest.mark.full
def test_one_loss_after_another(open_rig: OpenRig, report: Report) -> None:
    """Killed as soon as it is up again, six times: each life ends its streams, and the back-off grows."""
    rig = open_rig({"llm": {"engine_options": {"step_ms": 10}, "max_restarts": 100, "metrics_interval_ms": 100}})
    before = canary(rig)
    slowest = 0.0
    for _ in range(6):
        loss = lose_engine(rig, signal.SIGKILL)
        assert {end.how for end in loss.ends} == {"UNAVAILABLE"}, tally(loss.ends)
        slowest = max(slowest, loss.slowest)
    assert slowest < DETECTED_S
    assert canary(rig) == before
    report(f"6 SIGKILLs under {STREAMS} streams each: all UNAVAILABLE within {slowest * 1000:.0f} ms")


@pytest.mark.full
def test_a_lost_openvino_engine(open_rig: OpenRig, report: Report) -> None:
    """The same with the real model: the canary's tokens are the same before and afterwards."""
    rig = open_rig({"llm": {"engine": "openvino", "metrics_interval_ms": 100}})
    before = canary(rig)
    loss = lose_engine(rig, signal.SIGKILL)
    assert {end.how for end in loss.ends} == {"UNAVAILABLE"}, tally(loss.ends)
    assert loss.slowest < DETECTED_S
    assert canary(rig) == before
    left = rig.assert_nothing_left()
    report(
        f"openvino: {tally(loss.ends)} within {loss.slowest * 1000:.0f} ms; sent meanwhile: {tally(loss.late)}; {left}"
    )
