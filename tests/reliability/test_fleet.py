"""Two servers behind a real balancer, under steady load: whatever way one of them leaves, no request is lost.

A request is lost when its client does not get every token of it, whatever else the client gets. Nobody tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import recipes
from bench.fleet_servers import NOTICE_MS, FleetServer
from bench.recipes import Balancer
from inflight_tools.common.layout import ENGINE
from inflight_tools.server.server import Server, ServerConfig
from tests.conftest import require_installation
from tests.harness.http_client import metric
from tests.reliability.conftest import Report
from tests.reliability.load import Load, drive, make_request

pytestmark = pytest.mark.server

REQUESTS = 1000
CLIENTS = 8  # at the same time, over each protocol
TOKENS, LONG_TOKENS = 6, 500  # of most requests, and of those that are under way for the whole of a drain
OPTIONS = {"step_ms": 8}
SETTLED_S = 1.0


@pytest.fixture
def members(tmp_path: Path) -> Iterator[list[FleetServer]]:
    require_installation()
    made = [FleetServer(tmp_path / name, ENGINE, OPTIONS) for name in "ab"]
    yield made
    for member in made:
        member.stop()


@dataclasses.dataclass(slots=True)
class Traffic:
    """What became of all requests, and when they were sent."""

    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    lost: list[str] = dataclasses.field(default_factory=list)
    sent_at: list[float] = dataclasses.field(default_factory=list)

    def note(self, protocol: str, how: str, tokens: int, wanted: int, message: str) -> None:
        whole = how == "length" and tokens == wanted
        self.outcomes[protocol] += 1
        if not whole:
            self.lost.append(f"{protocol}: {how}, {tokens} of {wanted} tokens: {message}")

    def between(self, begin: float, end: float) -> int:
        return sum(begin <= at < end for at in self.sent_at)


async def generate_stream(address: str, text: str, tokens: int) -> tuple[str, int, str]:
    """One request over HTTP: how it ended, its tokens, what was said."""
    host, _, port = address.rpartition(":")
    inputs = {"text_input": text, "max_tokens": tokens, "stream": True, "ignore_eos": True}
    body = json.dumps({**inputs, "return_num_output_tokens": True, "return_finish_reason": True}).encode()
    head = f"POST /v2/models/llm/generate_stream HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n"
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await asyncio.wait_for(reader.read(), 60.0)
    finally:
        writer.close()
    status, events = answer.split(b"\r\n", 1)[0].decode(), []
    for line in answer.splitlines():
        if line.startswith(b"data:"):
            events.append(json.loads(line.removeprefix(b"data:")))
    if " 200 " not in status or any("error" in event for event in events):
        return "refused", 0, answer[-200:].decode(errors="replace")
    reasons = [event["finish_reason"] for event in events if event.get("finish_reason")]
    return (reasons or ["cut"])[-1], sum(event.get("num_output_tokens", 0) for event in events), status


def under_load(balancer: Balancer, requests: int, event: Callable[[], Any]) -> tuple[Traffic, float, Any]:
    """Steady load over both protocols; once a fifth of it has been sent, `event` happens. The load goes on until the
    event is over and `requests` have been sent. Returns when the event began, and what it returned.
    """
    traffic, over = Traffic(), asyncio.Event()

    async def work(load: Load) -> tuple[float, Any]:
        async def one(protocol: str, tokens: int) -> None:
            traffic.sent_at.append(time.monotonic())
            text = f"request {len(traffic.sent_at)}"
            if protocol == "http":
                try:
                    how, got, said = await generate_stream(balancer.http, text, tokens)
                except (OSError, asyncio.TimeoutError) as error:
                    how, got, said = type(error).__name__, 0, str(error)
            else:
                end = await load.run(make_request(text_input=text, max_tokens=tokens, ignore_eos=True))
                how, got, said = end.how, end.tokens, end.message
            traffic.note(protocol, how, got, tokens, said)

        async def client(protocol: str) -> None:
            while not over.is_set() or len(traffic.sent_at) < requests:
                await one(protocol, TOKENS)

        long = [asyncio.ensure_future(one(protocol, LONG_TOKENS)) for protocol in ("grpc", "http") for _ in range(4)]
        clients = [asyncio.ensure_future(client(protocol)) for protocol in ("grpc", "http") for _ in range(CLIENTS)]
        while len(traffic.sent_at) < requests / 5:
            await asyncio.sleep(0.02)
        began = time.monotonic()
        try:
            answer = await asyncio.to_thread(event)
        finally:
            over.set()
        await asyncio.gather(*long, *clients)
        return began, answer

    began, answer = drive(balancer.grpc, work, channels=8)
    return traffic, began, answer


def check(traffic: Traffic, began: float, requests: int) -> str:
    """Nothing is lost, and there was something to lose; a phrase for the report."""
    assert not traffic.lost, f"{len(traffic.lost)} of {len(traffic.sent_at)} lost: {traffic.lost[:5]}"
    assert sum(traffic.outcomes.values()) == len(traffic.sent_at) >= requests
    meanwhile = traffic.between(began, began + NOTICE_MS / 1000)
    assert meanwhile > 50, "hardly anything was sent while the server was leaving"
    counts = ", ".join(f"{count} {protocol}" for protocol, count in sorted(traffic.outcomes.items()))
    return f"0 of {len(traffic.sent_at)} requests lost ({counts}); {meanwhile} were sent during the notice"


@contextlib.contextmanager
def haproxy(folder: Path, members: list[FleetServer], agent: bool = False) -> Iterator[Balancer]:
    if not recipes.haproxy_program():
        pytest.skip("haproxy is missing: apt-get install haproxy")
    recipe = recipes.Recipe([each.place for each in members], "round robin", retries=False)
    with recipes.haproxy(folder, recipe, agent) as balancer:
        yield balancer


@contextlib.contextmanager
def envoy(folder: Path, members: list[FleetServer]) -> Iterator[Balancer]:
    recipe = recipes.Recipe([each.place for each in members], "round robin", retries=False)
    with recipes.envoy(folder, recipe) as balancer:
        yield balancer


def finished(member: FleetServer) -> float:
    """Requests that it has brought to their end."""
    return metric(f"http://127.0.0.1:{member.ports.metrics}/metrics", "inflight_requests_total", outcome="length")


FULL = pytest.mark.full
BALANCERS = [pytest.param(haproxy, id="haproxy", marks=FULL), pytest.param(envoy, id="envoy")]


@pytest.mark.parametrize("balance", BALANCERS)
def test_sigterm_loses_nothing(balance: Any, members: list[FleetServer], tmp_path: Path, report: Report) -> None:
    for member in members:
        member.serve()
    for member in members:
        member.wait_ready()
    leaving = members[0].processes[0]

    def stop() -> tuple[float, float]:
        leaving.terminate()
        began = time.monotonic()
        give_up, before = began + 5.0, members[0].health()
        while before == 200:
            assert time.monotonic() < give_up
            before = members[0].health()
        noticed = time.monotonic() - began
        assert leaving.wait(60.0) == 0, (members[0].folder / "output").read_text()
        return noticed, time.monotonic() - began

    with balance(tmp_path, members) as balancer:
        traffic, began, (noticed, gone) = under_load(balancer, REQUESTS, stop)
    seen = check(traffic, began, REQUESTS)
    assert noticed < 1.0
    report(f"SIGTERM: {seen}; not ready after {noticed:.2f} s, gone after {gone:.1f} s")


@FULL
@pytest.mark.parametrize(
    "balance", [*BALANCERS, pytest.param(lambda *given: haproxy(*given, agent=True), id="haproxy's agent")]
)
def test_a_drain_that_is_taken_back_loses_nothing(
    balance: Any, members: list[FleetServer], tmp_path: Path, report: Report
) -> None:
    for member in members:
        member.serve()
    for member in members:
        member.wait_ready()

    def there_and_back() -> tuple[float, float, float]:
        answer = members[0].command("drain")
        assert (answer["drained"], answer["ended"], answer["left"]) == (True, 0, 0)
        assert (members[0].health(), members[0].health("/live")) == (503, 200)
        time.sleep(SETTLED_S)
        at_rest = finished(members[0])
        assert members[0].command("undrain")["undrained"] is True
        while members[0].health() != 200:
            time.sleep(0.02)
        time.sleep(3 * SETTLED_S)
        return at_rest, finished(members[0]), finished(members[1])

    with balance(tmp_path, members) as balancer:
        traffic, began, (at_rest, after, other) = under_load(balancer, REQUESTS, there_and_back)
    seen = check(traffic, began, REQUESTS)
    assert after > at_rest + 20, "it was not taken back into the round"
    report(f"drain, undrain: {seen}; finished when drained {at_rest:.0f}, later {after:.0f}, by the other {other:.0f}")


@FULL
@pytest.mark.parametrize("balance", BALANCERS)
def test_a_prestop_command_loses_nothing(
    balance: Any, members: list[FleetServer], tmp_path: Path, report: Report
) -> None:
    """A container that starts tritonserver itself, health beside it. Kubernetes runs the hook, then sends SIGTERM."""
    servers = []
    for member in members:
        settings = {"ports": member.ports, "environment": member.environment, "stop_timeout_s": 20.0}
        config = ServerConfig(member.folder / "repository", log=member.folder / "tritonserver.log", **settings)
        servers.append(Server(config))
    try:
        for member, server in zip(members, servers, strict=True):
            server.start()
            triton = f"127.0.0.1:{member.ports.http}"
            member.start("-m", "inflight.control", "health", "--port", str(member.ports.health), "--triton", triton)
        for member in members:
            member.wait_ready()

        def pod_is_deleted() -> dict[str, Any]:
            answer = members[0].command("drain", "--timeout-ms", "25000")
            os.kill(servers[0].pid, signal.SIGTERM)
            give_up = time.monotonic() + 40.0
            while servers[0].exit_status() is None:
                assert time.monotonic() < give_up, "SIGKILL would come now"
                time.sleep(0.05)
            members[0].processes[0].terminate()
            return answer

        with balance(tmp_path, members) as balancer:
            traffic, began, answer = under_load(balancer, REQUESTS, pod_is_deleted)
        assert (answer["drained"], answer["ended"], answer["left"]) == (True, 0, 0)
        report(f"preStop: {check(traffic, began, REQUESTS)}")
    finally:
        for server in servers:
            server.stop()
