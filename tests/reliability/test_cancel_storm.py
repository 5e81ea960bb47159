"""Invariant 2: clients leave by the hundred, at any moment; afterwards nothing runs, waits or is reserved, and the next
request is answered rightly.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import statistics
import time
from typing import Any

import pytest

from inflight.serving.cancellation import questions_per_second
from tests.reliability.conftest import OpenRig, Report
from tests.reliability.load import LEFT, End, Load, drive, make_request, pace, patience, tally
from tests.reliability.rig import Rig

pytestmark = pytest.mark.server

PLACES = 48
LONG: dict[str, Any] = {"max_tokens": 2000, "ignore_eos": True}
CHECK: dict[str, Any] = {"text_input": "and the next one", "max_tokens": 12}


@pytest.fixture(scope="module")
def rig(open_rig: OpenRig) -> Rig:
    """So few places that of the hundreds most wait."""
    options = {"step_ms": 10, "max_running": PLACES}
    return open_rig({"llm": {"engine_options": options, "metrics_interval_ms": 100}})


def answer(rig: Rig) -> str:
    """The text of one request, alone."""
    (end,) = drive(rig.grpc, lambda load: load.all([make_request(**CHECK)]))
    assert (end.how, end.tokens) == ("length", CHECK["max_tokens"])
    return str(end.text)


def cancelled(rig: Rig) -> float:
    """Requests that were counted as cancelled, after a flush."""
    return rig.flushed(interval_s=0.1)["inflight_requests_total", "cancelled"]


def storm(rig: Rig, streams: int, seed: int) -> list[End]:
    """Clients that leave before their first token, while they wait, at a token, or right at the last one."""
    chance = random.Random(seed)
    turns = -(-streams // PLACES)  # of at most 40 tokens each
    limit_s = patience(40 * turns, pace(rig.grpc, PLACES))

    async def one(load: Load, number: int) -> End:
        await asyncio.sleep(chance.random() * 0.5)
        kind = chance.choice(("token", "token", "at once", "soon", "last", "stay"))
        if kind == "stay":
            return await load.run(make_request(text_input=f"s{number}", max_tokens=20))
        if kind == "last":  # between the last token and FINAL, as near as a client can come
            return await load.run(make_request(text_input=f"s{number}", max_tokens=3), lambda end: end.tokens >= 3)
        request = make_request(text_input=f"s{number}", **LONG)
        if kind == "token":
            offset = chance.randint(1, 40)
            return await load.run(request, lambda end: end.tokens >= offset)
        return await load.run(request, leave_after_s=0.0005 if kind == "at once" else chance.random() * 2)

    async def work(load: Load) -> list[End]:
        return list(await asyncio.gather(*(one(load, number) for number in range(streams))))

    ends: list[End] = drive(rig.grpc, work, channels=8, limit_s=limit_s)
    return ends


@pytest.mark.parametrize(
    ("streams", "seed"),
    [(300, 1), pytest.param(1000, 2, marks=pytest.mark.full), pytest.param(1000, 3, marks=pytest.mark.full)],
)
def test_hundreds_leave_at_random_moments(rig: Rig, report: Report, streams: int, seed: int) -> None:
    before, stub, engine = answer(rig), rig.stub_pid(), rig.engine_pid()
    ends = storm(rig, streams, seed)
    assert {end.how for end in ends} <= {LEFT, "length"}, tally(ends)
    assert all(end.finals <= 1 for end in ends)
    left = rig.assert_nothing_left()
    assert answer(rig) == before
    assert (rig.stub_pid(), rig.engine_pid()) == (stub, engine)
    report(f"{streams} streams: {tally(ends)}; {left}; the next answer is right")


def test_all_at_once(rig: Rig, report: Report) -> None:
    """A whole connection goes away with everything in it: 200 requests, a part of which run."""

    async def work(load: Load) -> list[End]:
        requests = [make_request(text_input=f"s{number}", **LONG) for number in range(200)]
        tasks = [asyncio.ensure_future(load.run(request)) for request in requests]
        await asyncio.to_thread(rig.until_at_work, PLACES, 200)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return []

    before = cancelled(rig)
    drive(rig.grpc, work, channels=1)
    began = time.monotonic()
    rig.at_rest()
    seconds = time.monotonic() - began
    left = rig.assert_nothing_left()
    assert cancelled(rig) == before + 200
    report(f"{PLACES} streams and {200 - PLACES} waiting ones left at once: at rest after {seconds:.2f} s; {left}")


def http_stream(rig: Rig, number: int) -> http.client.HTTPConnection:
    """Begin a streamed answer over HTTP and read its first event."""
    connection = http.client.HTTPConnection(rig.http, timeout=30)
    body = json.dumps({"text_input": f"h{number}", "stream": True, **LONG})
    connection.request("POST", "/v2/models/llm/generate_stream", body)
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.readline().startswith(b"data: ")
    return connection


def test_http_clients_disconnect_while_streaming(rig: Rig, report: Report) -> None:
    """Triton notices a lost HTTP connection when it writes to it (24.10): a streaming client's leave is seen soon."""
    before = cancelled(rig)
    connections = [http_stream(rig, number) for number in range(32)]
    began = time.monotonic()
    for connection in connections:
        if connection.sock is not None:
            connection.sock.close()
        connection.close()
    rig.at_rest()
    seconds = time.monotonic() - began
    left = rig.assert_nothing_left()
    assert cancelled(rig) == before + len(connections)
    report(f"{len(connections)} HTTP streams disconnected: at rest after {seconds:.2f} s; {left}")


def latencies(rig: Rig, streams: int, samples: int) -> tuple[list[float], list[float]]:
    """Seconds from a client's cancel until its request has ended, and until the engine has let go of it, with `streams`
    streams under way.
    """

    async def work(load: Load) -> tuple[list[float], list[float]]:
        requests = [make_request(text_input=f"s{number}", **LONG) for number in range(streams)]
        tasks = [asyncio.ensure_future(load.run(request)) for request in requests]
        while (await asyncio.to_thread(rig.status))["running"] < streams:
            await asyncio.sleep(0.1)
        ended, released = [], []
        for task in tasks[:samples]:
            status = await asyncio.to_thread(rig.status)
            task.cancel()
            began = time.monotonic()
            took = await asyncio.to_thread(_until_less, rig, status, began)
            ended.append(took[0])
            released.append(took[1])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return ended, released

    result: tuple[list[float], list[float]] = drive(rig.grpc, work, channels=8, limit_s=600.0)
    return result


def _until_less(rig: Rig, status: dict[str, Any], began: float) -> tuple[float, float]:
    ended = 0.0
    while time.monotonic() - began < 60.0:
        now = rig.status()
        if not ended and now["under_way"] < status["under_way"]:
            ended = time.monotonic() - began
        if now["running"] < status["running"]:
            return ended, time.monotonic() - began
        time.sleep(0.001)
    raise TimeoutError(f"a cancel has no effect: {rig.status()}")


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("streams", "step_ms", "samples"), [(64, 50, 24), (2048, 1000, 10)], ids=["64 streams", "2,048 streams"]
)
def test_latency_of_a_cancel(open_rig: OpenRig, report: Report, streams: int, step_ms: int, samples: int) -> None:
    """The poller asks a bounded number of questions a second, so this grows with the streams (docs/reliability.md)."""
    options = {"step_ms": step_ms, "decode_us_per_sequence": 0, "max_running": streams, "blocks": 200_000}
    rig = open_rig({"llm": {"engine_options": options, "stall_timeout_ms": 30_000}})
    ended, released = latencies(rig, streams, samples)
    questions = questions_per_second(streams, len(os.sched_getaffinity(0)))
    assert max(ended) < 1.5 * streams / questions + 1.0
    left = rig.assert_nothing_left()
    text = ", ".join(
        f"{name} {statistics.median(values) * 1000:.0f} ms (worst of {len(values)}: {max(values) * 1000:.0f} ms)"
        for name, values in (("ended after", ended), ("out of the engine after", released))
    )
    report(f"{streams} streams, a token each per {step_ms} ms: {text}; {left}")
