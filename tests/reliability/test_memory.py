"""Invariant 5: memory of stub and engine is flat over thousands of requests; clients that read slowly, or not at all,
or only sit there, cost at most their own answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.reliability.conftest import OpenRig, Report
from tests.reliability.load import End, Load, drive, make_request, pace, patience, tally
from tests.reliability.rig import Rig

pytestmark = pytest.mark.server

MEBI = 1 << 20
CLIENTS, SHORT_TOKENS = 64, 4  # of short requests
FLAT_BYTES = 6 * MEBI  # what stub and engine may grow by over the last two thirds of the requests


@pytest.fixture(scope="module")
def rig(open_rig: OpenRig) -> Rig:
    """Steps of 2 ms, so that short requests are short."""
    options = {"step_ms": 2, "decode_us_per_sequence": 10, "max_running": 128}
    return open_rig({"llm": {"engine_options": options, "metrics_interval_ms": 100}})


@pytest.fixture(scope="module")
def engine_flat_bytes() -> int:
    """What the engine may grow by."""
    return FLAT_BYTES


def short_requests(rig: Rig, count: int) -> list[End]:
    """`count` requests of a few tokens, 64 at a time; half of them stream."""
    limit_s = patience(SHORT_TOKENS, pace(rig.grpc, CLIENTS))

    async def work(load: Load) -> list[End]:
        numbers, ends = iter(range(count)), []

        async def client() -> None:
            for number in numbers:
                request = make_request(text_input=f"number {number}", max_tokens=SHORT_TOKENS, stream=bool(number % 2))
                ends.append(await load.run(request))

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        return ends

    result: list[End] = drive(rig.grpc, work, channels=8, limit_s=limit_s)
    return result


@pytest.mark.parametrize("count", [3000, pytest.param(10_000, marks=pytest.mark.full)])
def test_short_requests_leave_nothing_in_memory(rig: Rig, report: Report, engine_flat_bytes: int, count: int) -> None:
    third = count // 3
    assert {(end.how, end.tokens) for end in short_requests(rig, third)} == {("length", 4)}
    before = rig.resident_bytes()
    ends = short_requests(rig, count - third)
    assert {(end.how, end.tokens) for end in ends} == {("length", 4)}, tally(ends)
    left = rig.assert_nothing_left()
    after = rig.resident_bytes()
    grown = {name: after[name] - before[name] for name in after}
    text = ", ".join(f"{name} {after[name] / MEBI:.0f} MiB ({grown[name] / MEBI:+.1f})" for name in after)
    report(f"{count} requests; after the last {len(ends)}: {text}; {left}")
    assert grown["stub"] < FLAT_BYTES, text
    assert grown["engine"] < engine_flat_bytes, text


def test_prompts_of_the_greatest_length(rig: Rig, report: Report) -> None:
    """As long as the context allows; one token more is refused."""
    before = rig.resident_bytes()
    longest = 8192 - 1
    requests = [make_request(input_ids=[number + 7] * longest, max_tokens=50) for number in range(20)]
    requests += [make_request(input_ids=[7] * (longest + 1), max_tokens=1)]
    ends = drive(rig.grpc, lambda load: load.all(requests))
    assert {(end.how, end.tokens) for end in ends[:-1]} == {("length", 1)}, tally(ends)
    assert ends[-1].how == "INVALID_ARGUMENT"
    left = rig.assert_nothing_left()
    grown = rig.resident_bytes()["stub"] - before["stub"]
    assert grown < 40 * MEBI
    report(f"20 prompts of {longest} tokens: 1 token each ({tally(ends[:-1])}); stub {grown / MEBI:+.1f} MiB; {left}")


def dead_http_reader(rig: Rig) -> socket.socket:
    """A client that asks for a long streamed answer and never reads a byte of it."""
    host, _, port = rig.http.partition(":")
    connection = socket.create_connection((host, int(port)))
    body = json.dumps({"text_input": "to nobody", "max_tokens": 1500, "ignore_eos": True, "stream": True}).encode()
    head = f"POST /v2/models/llm/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_slow_and_dead_readers_do_not_hold_up_the_others(rig: Rig, report: Report) -> None:
    """40 clients never read, 20 read a response each 50 ms; the engine is free long before, and others are quick."""

    async def work(load: Load) -> tuple[float, list[End], list[End], float]:
        async def slowly(_: End) -> None:
            await asyncio.sleep(0.05)

        began = time.monotonic()
        slow = [
            asyncio.ensure_future(load.run(make_request(text_input=f"slow {number}", max_tokens=200), pause=slowly))
            for number in range(20)
        ]
        await asyncio.sleep(0.2)
        quick = await load.all(make_request(text_input=f"quick {number}", max_tokens=20) for number in range(20))
        quickest = max(end.at for end in quick) - began - 0.2
        await asyncio.to_thread(rig.until, lambda: rig.status()["under_way"] == 0, 60.0)
        return time.monotonic() - began, quick, list(await asyncio.gather(*slow)), quickest

    before = rig.resident_bytes()
    dead = [dead_http_reader(rig) for _ in range(40)]
    try:
        free_after, quick, slow, seconds = drive(rig.grpc, work)
        held = rig.resident_bytes()
    finally:
        for connection in dead:
            connection.close()
    assert {(end.how, end.tokens) for end in quick} == {("length", 20)}, tally(quick)
    assert {(end.how, end.tokens) for end in slow} == {("length", 200)}, tally(slow)
    assert seconds < 10.0
    grown = {name: (held[name] - before[name]) / MEBI for name in held}
    assert grown["stub"] < 12, grown
    assert grown["server"] < 64, grown
    left = rig.assert_nothing_left()
    report(
        f"beside 40 dead and 20 slow readers 20 others took {seconds:.2f} s; all made after {free_after:.1f} s; "
        f"server {grown['server']:+.1f} MiB, stub {grown['stub']:+.1f} MiB; {left}"
    )


@contextlib.contextmanager
def idle_connections(rig: Rig, count: int) -> Iterator[None]:
    """Connections to gRPC and HTTP, half each, that say nothing."""
    with contextlib.ExitStack() as stack:
        for number in range(count):
            host, _, port = (rig.grpc if number % 2 else rig.http).partition(":")
            stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
        yield


@pytest.mark.parametrize("count", [1000, pytest.param(4000, marks=pytest.mark.full)])
def test_idle_connections(rig: Rig, report: Report, count: int) -> None:
    server = psutil.Process(rig.server.pid)
    before, descriptors = rig.resident_bytes(), server.num_fds()
    with idle_connections(rig, count):
        began = time.monotonic()
        ends = short_requests(rig, 200)
        seconds = time.monotonic() - began
        held = rig.resident_bytes()
        assert server.num_fds() > descriptors + count * 0.9
    assert {(end.how, end.tokens) for end in ends} == {("length", 4)}, tally(ends)
    rig.until(lambda: server.num_fds() < descriptors + 50, 30.0)
    left = rig.assert_nothing_left()
    grown = {name: (held[name] - before[name]) / MEBI for name in held}
    assert grown["stub"] < 8, grown
    report(
        f"{count} idle connections: 200 requests took {seconds:.1f} s; server {grown['server']:+.1f} MiB, "
        f"stub {grown['stub']:+.1f} MiB; descriptors given back; {left}"
    )
