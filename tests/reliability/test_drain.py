"""Invariant 4: a drain takes no new work, lets streams finish within its limit, ends the rest UNAVAILABLE, and leaves
neither a process nor shared memory behind.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from inflight_tools.common.layout import REPOSITORY
from inflight_tools.server.server import Ports
from tests.harness.repository import write_model
from tests.reliability.conftest import OpenRig, Report
from tests.reliability.load import LIMIT_S as CLIENT_S
from tests.reliability.load import SLACK, End, Load, drive, make_request, pace, tally
from tests.reliability.rig import Rig, regions_of, run_folders_of

pytestmark = pytest.mark.server

LIMIT_S = 2.0  # of a drain, at the least
LEFTOVER_S = 2.0  # what ending the rest may take
SHORT = 20  # streams that end within the limit
SHORT_TOKENS = 60
LONG = 10  # streams that do not
OPTIONS = {"step_ms": 10, "max_running": 24}  # some streams are still queued when the drain begins


@dataclasses.dataclass(slots=True)
class Drained:
    """What the clients saw of a drain; times in seconds after its beginning."""

    short: list[End]
    long: list[End]
    late: list[End]  # sent while it drained
    last_end: float
    answer: Any = None


def drain_under_load(
    grpc_url: str,
    drain: Callable[[], Any],
    draining: Callable[[], bool],
    arrived: Callable[[], Any],
    limit_s: float = LIMIT_S,
) -> Drained:
    """Short and long streams, and a drain in the middle of them; `drain` and `arrived` block until they are over."""

    async def work(load: Load) -> Drained:
        short = [make_request(text_input=f"s{number}", max_tokens=SHORT_TOKENS) for number in range(SHORT)]
        long = [make_request(text_input=f"l{number}", max_tokens=8000, ignore_eos=True) for number in range(LONG)]
        tasks = [asyncio.ensure_future(load.run(request)) for request in short + long]
        await asyncio.to_thread(arrived)
        began = time.monotonic()
        over = asyncio.ensure_future(asyncio.to_thread(drain))
        while not await asyncio.to_thread(draining):
            await asyncio.sleep(0.01)
        late = await load.all(make_request(text_input=f"late{number}", max_tokens=4) for number in range(5))
        ends = list(await asyncio.gather(*tasks))
        return Drained(ends[:SHORT], ends[SHORT:], late, max(end.at for end in ends) - began, await over)

    result: Drained = drive(grpc_url, work, limit_s=CLIENT_S + limit_s)
    return result


def check(drained: Drained, limit_s: float = LIMIT_S) -> str:
    """What must hold of every drain; a phrase for the report."""
    assert {(end.how, end.tokens) for end in drained.short} == {("length", SHORT_TOKENS)}, tally(drained.short)
    assert {end.how for end in drained.long} == {"UNAVAILABLE"}, tally(drained.long)
    assert all("draining" in end.message for end in drained.long)
    assert {end.how for end in drained.late} == {"UNAVAILABLE"}, tally(drained.late)
    assert limit_s - 0.2 < drained.last_end < limit_s + LEFTOVER_S
    return (
        f"short streams: {tally(drained.short)}; long ones: {tally(drained.long)} after {drained.last_end:.1f} s "
        f"(limit {limit_s:.1f} s); sent meanwhile: {tally(drained.late)}"
    )


@pytest.fixture
def rig(open_rig: OpenRig) -> Iterator[Rig]:
    """A server of the test's own: a drained one takes no work any more."""
    rig = open_rig({"llm": {"engine_options": OPTIONS}})
    yield rig
    rig.server.stop()


def test_a_drain_over_the_control_socket(rig: Rig, report: Report) -> None:
    limit_s = max(LIMIT_S, SLACK * SHORT_TOKENS * pace(rig.grpc, SHORT))
    drained = drain_under_load(
        rig.grpc,
        lambda: rig.ask("drain", timeout_ms=int(limit_s * 1000), notice_ms=0, timeout_s=limit_s + 30.0),
        lambda: bool(rig.status()["draining"]),
        lambda: rig.until_at_work(OPTIONS["max_running"], SHORT + LONG),
        limit_s,
    )
    seen = check(drained, limit_s)
    assert (drained.answer["finished"], drained.answer["ended"], drained.answer["left"]) == (SHORT, LONG, 0)
    left = rig.assert_nothing_left()
    assert rig.metrics()["inflight_draining", ""] == 1.0
    report(f"{seen}; {left}")


def descendants(pid: int) -> set[int]:
    """The process and everything below it."""
    process = psutil.Process(pid)
    return {pid, *(child.pid for child in process.children(recursive=True))}


@dataclasses.dataclass(slots=True)
class Served:
    """scripts/serve.py with a server under it."""

    process: subprocess.Popen[bytes]
    addresses: dict[str, Any]
    log: Path


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """serve.py on free ports, ready."""
    write_model(tmp_path / "repository", "llm", {"engine": "simulated", "engine_options": OPTIONS})
    ports, ready = Ports.free(), tmp_path / "ready.json"
    command = [sys.executable, str(REPOSITORY / "scripts" / "serve.py"), "--repository", str(tmp_path / "repository")]
    command += ["--http-port", str(ports.http), "--grpc-port", str(ports.grpc), "--metrics-port", str(ports.metrics)]
    command += ["--health-port", str(ports.health), "--ready-file", str(ready), "--log", str(tmp_path / "server.log")]
    command += ["--drain-timeout", str(LIMIT_S), "--drain-notice", "0"]
    with (tmp_path / "serve.out").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        give_up = time.monotonic() + 60.0
        while not ready.exists():
            assert process.poll() is None, (tmp_path / "serve.out").read_text()
            assert time.monotonic() < give_up, "serve.py is not ready"
            time.sleep(0.1)
        yield Served(process, json.loads(ready.read_text()), tmp_path / "server.log")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60.0)


def health(served: Served) -> dict[str, Any]:
    """What the server says of its model, ready or not."""
    try:
        with urllib.request.urlopen(served.addresses["health"], timeout=10) as answer:
            said = json.load(answer)
    except urllib.error.HTTPError as refused:
        said = json.load(refused)
    model: dict[str, Any] = said["models"]["llm"]
    return model


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, f"not within {timeout_s} s"
        time.sleep(0.02)


def test_serve_py_drains_on_sigterm(served: Served, report: Report) -> None:
    pids = descendants(served.process.pid)
    assert len(pids) >= 4, "serve.py, tritonserver, the stub and the engine"
    regions, folders = regions_of(pids), run_folders_of(pids)
    assert len(regions) == len(folders) == 1
    began = time.monotonic()

    def arrived() -> None:
        time.sleep(0.4)
        until(lambda: health(served)["under_way"] >= LONG)

    drained = drain_under_load(
        served.addresses["grpc"],
        lambda: os.kill(served.process.pid, signal.SIGTERM),
        lambda: health(served)["health"] == "draining",
        arrived,
    )
    seen = check(drained)
    status = served.process.wait(30.0)
    seconds = time.monotonic() - began
    assert status == 0, served.log.read_text()[-2000:]
    left = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    assert not left
    assert not [path for path in regions | folders if path.exists()]
    report(f"SIGTERM: {seen}; exit {status} after {seconds:.1f} s; left over: 0 of {len(pids)} processes, 0 regions")
