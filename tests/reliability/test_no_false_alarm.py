"""What is slow is not lost: none of this may cost a healthy engine its life (invariant 3)."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.reliability.conftest import OpenRig, Report
from tests.reliability.load import End, Load, drive, make_request, pace, patience, tally
from tests.reliability.rig import Rig

pytestmark = pytest.mark.server

STALL_MS = 1500
PREFILL = {"prefill_us_per_token": 1000, "chunk_tokens": 500}  # half a second for each step of a long prompt


@pytest.fixture(scope="module")
def rig(open_rig: OpenRig) -> Rig:
    """Short stall time, slow prefill."""
    return open_rig({"llm": {"engine_options": {"step_ms": 10, **PREFILL}, "stall_timeout_ms": STALL_MS}})


@pytest.fixture(autouse=True)
def same_engine(rig: Rig) -> Iterator[None]:
    """The engine that was there before is still there, and was never replaced."""
    pid = rig.engine_pid()
    yield
    status = rig.status()
    assert (status["engine_pid"], status["restarts"]) == (pid, 0)
    rig.assert_nothing_left()


def test_a_long_prefill(rig: Rig, report: Report) -> None:
    """Eight steps of half a second: far more than the stall time in all."""
    began = time.monotonic()
    (end,) = drive(rig.grpc, lambda load: load.all([make_request(input_ids=[5] * 4000, max_tokens=4)]))
    assert (end.how, end.tokens) == ("length", 4)
    assert end.first_at - began > 2 * STALL_MS / 1000
    report(f"4,000 prompt tokens took {end.first_at - began:.1f} s at a stall time of {STALL_MS} ms: no alarm")


@contextmanager
def busy_machine(fold: int) -> Iterator[None]:
    """`fold` processes that compute, for each core."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_compute, daemon=True) for _ in range(fold * (os.cpu_count() or 1))]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.join(10.0)


def _compute() -> None:
    while True:
        sum(range(10_000))


def test_four_times_more_work_than_cores(rig: Rig, report: Report) -> None:
    async def work(load: Load) -> list[End]:
        return await load.all(make_request(text_input=f"s{number}", max_tokens=200) for number in range(24))

    with busy_machine(4):
        ends = drive(rig.grpc, work, limit_s=patience(200, pace(rig.grpc, 24)))
    assert {(end.how, end.tokens) for end in ends} == {("length", 200)}, tally(ends)
    report(f"24 streams of 200 tokens beside {4 * (os.cpu_count() or 1)} computing processes: {tally(ends)}, no alarm")


def pause_everything(rig: Rig, seconds: float, order: random.Random) -> None:
    """SIGSTOP every process of the server, wait, and wake them one after the other in some order."""
    pids = rig.server.processes()
    for pid in order.sample(pids, len(pids)):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in order.sample(pids, len(pids)):
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.05)


def streams_through_a_pause(rig: Rig, seconds: float) -> list[End]:
    limit_s = patience(300, pace(rig.grpc, 16), seconds)

    async def work(load: Load) -> list[End]:
        streams = [make_request(text_input=f"s{number}", max_tokens=300, ignore_eos=True) for number in range(16)]
        tasks = [asyncio.ensure_future(load.run(stream)) for stream in streams]
        await asyncio.sleep(1.0)
        assert not any(task.done() for task in tasks)
        await asyncio.to_thread(pause_everything, rig, seconds, random.Random(int(seconds)))
        return list(await asyncio.gather(*tasks))

    ends: list[End] = drive(rig.grpc, work, limit_s=limit_s)
    return ends


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(5.0, id="5 s"), pytest.param(30.0, id="30 s", marks=pytest.mark.full)],
)
def test_everything_paused(rig: Rig, report: Report, seconds: float) -> None:
    """As when a container is frozen and thawed: server, stub and engine stand still, far beyond the stall time."""
    ends = streams_through_a_pause(rig, seconds)
    assert {(end.how, end.tokens) for end in ends} == {("length", 300)}, tally(ends)
    report(f"16 streams paused for {seconds:g} s in the middle: {tally(ends)}, no alarm")


def test_only_the_stub_paused(rig: Rig, report: Report) -> None:
    """The engine goes on and fills the socket; whoever watches it was asleep."""
    limit_s = patience(400, pace(rig.grpc, 16), beside_s=3.0)

    async def work(load: Load) -> list[End]:
        streams = [make_request(text_input=f"s{number}", max_tokens=400, ignore_eos=True) for number in range(16)]
        tasks = [asyncio.ensure_future(load.run(stream)) for stream in streams]
        await asyncio.sleep(1.0)
        stub = rig.stub_pid()
        os.kill(stub, signal.SIGSTOP)
        await asyncio.sleep(3.0)
        os.kill(stub, signal.SIGCONT)
        return list(await asyncio.gather(*tasks))

    ends = drive(rig.grpc, work, limit_s=limit_s)
    assert {(end.how, end.tokens) for end in ends} == {("length", 400)}, tally(ends)
    report(f"the stub alone paused for 3 s under 16 streams: {tally(ends)}, no alarm")


def test_idle_at_the_shortest_stall_time(open_rig: OpenRig) -> None:
    """`stall_timeout_ms` may be less than what an engine without work sleeps."""
    rig = open_rig({"llm": {"stall_timeout_ms": 100}})
    pid = rig.engine_pid()
    time.sleep(3.0)
    (end,) = drive(rig.grpc, lambda load: load.all([make_request(text_input="x", max_tokens=4, ignore_eos=True)]))
    assert (end.how, end.tokens) == ("length", 4)
    assert (rig.engine_pid(), rig.status()["restarts"]) == (pid, 0)


def test_one_long_step_of_the_real_engine(open_rig: OpenRig, report: Report) -> None:
    """1,000 tokens in one step, which hold its owner thread for many stall times."""
    options = {"max_batched_tokens": 1024, "threads": 1}
    rig = open_rig({"llm": {"engine": "openvino", "engine_options": options, "stall_timeout_ms": 200}})
    pid = rig.engine_pid()
    began = time.monotonic()
    prompt = [1000 + number for number in range(1000)]
    request = make_request(input_ids=prompt, max_tokens=4, ignore_eos=True)
    (end,) = drive(rig.grpc, lambda load: load.all([request]), limit_s=120.0)  # other tests run beside it
    assert (end.how, end.tokens) == ("length", 4)
    assert end.first_at - began > 1.5 * 0.2
    assert (rig.engine_pid(), rig.status()["restarts"]) == (pid, 0)
    report(f"a step of 1,000 tokens took {end.first_at - began:.1f} s at a stall time of 200 ms: no alarm")
