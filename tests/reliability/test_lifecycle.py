"""Models that come and go under load, and servers that end hard: nothing is lost but what was being done."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from inflight import control
from inflight_tools.server.server import Server
from tests.reliability.conftest import OpenRig, Report
from tests.reliability.load import End, Load, drive, make_request, pace, patience, tally
from tests.reliability.rig import Rig, regions_of, run_folders_of
from tests.reliability.test_engine_faults import repository

pytestmark = pytest.mark.server

WARMUP = """
model_warmup [ {
  name: "first"
  batch_size: 1
  inputs { key: "text_input" value { data_type: TYPE_STRING dims: [1] zero_data: true } }
  inputs { key: "max_tokens" value { data_type: TYPE_INT32 dims: [1] zero_data: true } }
} ]
"""


@pytest.fixture(scope="module")
def rig(open_rig: OpenRig) -> Rig:
    """Two models side by side."""
    parameters: dict[str, Any] = {"engine_options": {"step_ms": 10}, "metrics_interval_ms": 100}
    return open_rig({"llm": parameters, "other": parameters})


def ask(rig: Rig, model: str) -> End:
    return ask_at(rig.grpc, model)


def ask_at(grpc_url: str, model: str = "llm") -> End:
    end: End = drive(grpc_url, lambda load: load.run(make_request(model, text_input="hello", max_tokens=5)))
    return end


def test_two_models_side_by_side(rig: Rig, report: Report) -> None:
    """The loss of one's engine does not touch the other's streams."""
    limit_s = patience(150, max(pace(rig.grpc, 12, model) for model in ("llm", "other")))

    async def work(load: Load) -> tuple[list[End], list[End]]:
        first, second = (
            [
                asyncio.ensure_future(load.run(make_request(model, text_input=f"s{number}", max_tokens=150)))
                for number in range(12)
            ]
            for model in ("llm", "other")
        )
        await asyncio.sleep(0.5)
        await asyncio.to_thread(rig.signal_engine, signal.SIGKILL, "other")
        return list(await asyncio.gather(*first)), list(await asyncio.gather(*second))

    first, second = drive(rig.grpc, work, limit_s=limit_s)
    assert {(end.how, end.tokens) for end in first} == {("length", 150)}, tally(first)
    assert {end.how for end in second} == {"UNAVAILABLE"}, tally(second)
    rig.until_healthy(model="other")
    assert ask(rig, "other").how == "length"
    left = rig.assert_nothing_left("llm") and rig.assert_nothing_left("other")
    report(f"engine of `other` killed: llm {tally(first)}, other {tally(second)}; {left}")


def test_an_unload_lets_streams_finish(rig: Rig, report: Report) -> None:
    """Triton finalizes a model when its last request has ended; until then nothing new is taken."""
    limit_s = patience(150, pace(rig.grpc, 12, "other"))

    async def work(load: Load) -> tuple[list[End], list[End]]:
        requests = [make_request("other", text_input=f"s{number}", max_tokens=150) for number in range(12)]
        tasks = [asyncio.ensure_future(load.run(request)) for request in requests]
        await asyncio.to_thread(rig.until_at_work, 12, 12, "other")
        status, text = await asyncio.to_thread(repository, rig, "other", "unload")
        assert status == 200, text
        late = await load.all([make_request("other", text_input="late", max_tokens=3)])
        return list(await asyncio.gather(*tasks)), late

    engines = rig.server.engine_pids()
    ends, late = drive(rig.grpc, work, limit_s=limit_s)
    assert {(end.how, end.tokens) for end in ends} == {("length", 150)}, tally(ends)
    assert "no available versions" in late[0].message or "not at ready state" in late[0].message, late
    began = time.monotonic()
    rig.until(lambda: len(rig.server.engine_pids()) == len(engines) - 1 and len(rig.server.stub_pids()) == 1, 15.0)
    seconds = time.monotonic() - began
    assert repository(rig, "other", "load")[0] == 200
    assert ask(rig, "other").how == "length"
    report(f"unload under 12 streams: {tally(ends)}; stub and engine gone {seconds:.1f} s later; loaded again, answers")


@pytest.mark.parametrize("times", [2, pytest.param(15, marks=pytest.mark.full)])
def test_load_and_unload_again_and_again(rig: Rig, report: Report, times: int) -> None:
    def sizes() -> tuple[int, ...]:
        pids = rig.server.stub_pids()
        sockets = [path for path in control.control_dir().glob("*.sock") if int(path.stem.rpartition("-")[2]) in pids]
        return len(pids), len(rig.server.engine_pids()), len(regions_of(pids)), len(run_folders_of(pids)), len(sockets)

    before, old = sizes(), held(rig)
    answers = set()
    for _ in range(times):
        assert repository(rig, "other", "unload")[0] == 200
        rig.until(lambda: len(rig.server.stub_pids()) == 1, 15.0)
        assert repository(rig, "other", "load")[0] == 200
        answers.add((ask(rig, "other").how, ask(rig, "other").text))
    assert len(answers) == 1
    rig.until(lambda: sizes() == before, 15.0)
    assert before == (2, 2, 2, 2, 2)
    still = held(rig)
    assert not [path for path in old - still if path.exists()]
    report(f"unload and load {times} times: the same answer each time; 2 stubs, engines, regions and sockets as before")


def held(rig: Rig) -> set[Path]:
    """What the stubs hold or made: shared memory and run folders."""
    return regions_of(rig.server.stub_pids()) | run_folders_of(rig.server.stub_pids())


def test_a_warm_up_is_answered_and_not_counted(rig: Rig, report: Report) -> None:
    rig.add_model("warm", {"metrics_interval_ms": 100}, WARMUP)
    status, text = repository(rig, "warm", "load")
    assert status == 200, text
    samples = rig.flushed("warm")
    assert sum(value for (name, _), value in samples.items() if name == "inflight_requests_total") == 0.0
    assert samples["inflight_generation_tokens_total", ""] == 0.0
    assert samples["inflight_request_latency_seconds_count", ""] == 0.0
    left = rig.assert_nothing_left("warm")
    assert ask(rig, "warm").how == "length"
    assert rig.flushed("warm")["inflight_requests_total", "length"] == 1.0
    assert repository(rig, "warm", "unload")[0] == 200
    rig.until(lambda: len(rig.server.stub_pids()) == len(rig.server.engine_pids()) == 2, 15.0)
    report(f"a warm-up with an empty prompt: loaded, 0 requests counted; the first client's is 1; {left}")


@pytest.mark.parametrize("streams", [pytest.param(0, marks=pytest.mark.full), 8])
def test_a_server_killed_hard_is_cleaned_up_by_the_next_start(open_rig: OpenRig, report: Report, streams: int) -> None:
    """tritonserver dies as by a segmentation fault: stub and engine follow it, and the next start removes the rest."""
    rig = open_rig({"llm": {"engine_options": {"step_ms": 10}}})
    pids = rig.server.stub_pids()
    regions, folders = regions_of(pids), run_folders_of(pids)
    assert len(regions) == len(folders) == 1

    async def work(load: Load) -> list[End]:
        requests = [make_request(text_input=f"s{number}", max_tokens=8000) for number in range(streams)]
        tasks = [asyncio.ensure_future(load.run(request)) for request in requests]
        await asyncio.sleep(0.5)
        os.kill(rig.server.pid, signal.SIGKILL)
        return list(await asyncio.gather(*tasks))

    ends = drive(rig.grpc, work)
    began = time.monotonic()
    while rig.server.exit_status() is None or (rig.server.processes() and time.monotonic() - began < 5.0):
        time.sleep(0.05)
    seconds = time.monotonic() - began
    assert not rig.server.processes(), "stub and engine have to end with their server"
    assert {end.how for end in ends} <= {"UNAVAILABLE"}, tally(ends)
    with Server(rig.server.config) as again:
        again.wait_ready(60.0)
        assert ask_at(again.grpc_url).how == "length"
        assert not [path for path in regions | folders if path.exists()]
    report(
        f"tritonserver -9 under {streams} streams: stub and engine gone after {seconds:.1f} s, the next start is clean"
    )
