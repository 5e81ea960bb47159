"""Three servers behind the balancers of deploy/, as their files have them, second tries and all.

A request is lost when its client does not get every token of it over one connection; no client tries again.
"""

from __future__ import annotations

import argparse
import asyncio
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from bench import fleet, recipes
from bench.fleet_load import PROTOCOLS, Clients, Request, steady
from bench.fleet_servers import FleetServer
from bench.recipes import Balancer, Recipe
from inflight_tools.common.layout import ENGINE
from tests.conftest import require_installation
from tests.reliability.conftest import Report

pytestmark = [pytest.mark.server, pytest.mark.full]

KINDS = ["envoy", "haproxy"]
SESSIONS = 12


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[FleetServer]]:
    require_installation()
    options = argparse.Namespace(openvino=False, engine=ENGINE)
    with fleet.fleet(tmp_path_factory.mktemp("fleet"), options) as started:
        yield started


@pytest.fixture(params=KINDS)
def balancer(request: pytest.FixtureRequest, servers: list[FleetServer], tmp_path: Path) -> Iterator[Balancer]:
    if request.param == "haproxy" and not recipes.haproxy_program():
        pytest.skip("haproxy is missing: apt-get install haproxy")
    with fleet.BALANCERS[request.param](tmp_path, Recipe([each.place for each in servers])) as running:
        yield running


def test_what_strangers_must_not_reach_is_closed(balancer: Balancer) -> None:
    for path in ("/v2/repository/index", "/v2/repository/models/llm/unload", "/v2/models/llm/trace/setting"):
        assert status(balancer.http, path, b"{}") == 403, path
    assert status(balancer.openai, "/metrics") == 403
    assert status(balancer.http, "/v2/models/llm/ready") == status(balancer.openai, "/v1/models") == 200
    with grpc.insecure_channel(balancer.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ModelReady(pb.ModelReadyRequest(name="llm"), timeout=10).ready
        assert stub.ServerLive(pb.ServerLiveRequest(), timeout=10).live
        with pytest.raises(grpc.RpcError) as refused:
            stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="llm"), timeout=10)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def status(address: str, path: str, body: bytes | None = None) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://{address}{path}", body), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_rolling_restart_loses_nothing(balancer: Balancer, servers: list[FleetServer], report: Report) -> None:
    traffic = steady(balancer, lambda: fleet.restart_all(servers), 2000)
    assert not traffic.lost, f"{len(traffic.lost)} of {len(traffic.requests)}: {traffic.lost[:3]}"
    assert len(traffic.requests) >= 2000
    counts = Counter(request.protocol for request in traffic.requests)
    report(f"0 of {len(traffic.requests)} lost ({dict(counts)}) in {traffic.over - traffic.began:.0f} s of restarts")


@pytest.mark.parametrize("event", [fleet.kill_server, fleet.kill_engine], ids=lambda event: event.__name__)
def test_only_streams_that_had_begun_are_lost(
    balancer: Balancer, servers: list[FleetServer], report: Report, event: Any
) -> None:
    traffic = steady(balancer, lambda: event(servers), 1000)
    judged = fleet.judge(traffic)
    silent = [request for request in traffic.lost if not request.got and not request.finish]
    assert not silent, silent[:3]
    assert all(request.error or not request.finish for request in traffic.lost)
    assert 1 <= len(traffic.lost) <= 40
    report(f"{event.__name__}: {judged['failed']} of {judged['requests']} lost, every one with tokens out")


def test_a_server_gets_its_sessions_back(balancer: Balancer, servers: list[FleetServer], report: Report) -> None:
    before, meanwhile, after = sessions(balancer, servers), {}, {}
    leaving = before[0]
    assert len(set(before.values())) == len(servers), before
    servers[leaving].leave()
    time.sleep(1.5)
    meanwhile = sessions(balancer, servers, without=leaving)
    servers[leaving].serve()
    servers[leaving].wait_ready()
    time.sleep(3.0)
    after = sessions(balancer, servers)
    kept = {name for name in before if before[name] != leaving}
    same = sum(after[name] == before[name] for name in before)
    assert same >= SESSIONS - 2, (before, after)  # the bound may move one whose server had not quite done with another
    assert leaving in after.values()
    stayed = sum(meanwhile[name] == before[name] for name in kept)
    assert stayed >= 0.8 * len(kept)
    spread = sorted(Counter(before.values()).values())
    report(f"{SESSIONS} sessions on {spread}: {stayed} of {len(kept)} stayed where they were; later {same} as before")


def sessions(balancer: Balancer, servers: list[FleetServer], without: int | None = None) -> dict[int, int]:
    """Which server answers each session: the one whose counter moves."""
    there = [number for number in range(len(servers)) if number != without]

    def ended() -> dict[int, float]:
        return {number: fleet.metric(servers[number], "inflight_generation_tokens_total") for number in there}

    async def ask(session: int) -> None:
        async with Clients(balancer, channels=1) as clients:
            tokens = 2 + session  # every request can be told by its tokens
            for protocol in PROTOCOLS[:1]:
                answer = await clients.send(Request(protocol, f"session {session}", tokens, f"session-{session}"))
                assert answer.whole, answer

    found = {}
    for session in range(SESSIONS):
        before = ended()
        asyncio.run(ask(session))
        give_up = time.monotonic() + 10.0
        while not (moved := [number for number, count in ended().items() if count > before[number]]):
            assert time.monotonic() < give_up
            time.sleep(0.05)
        (found[session],) = moved
    return found
