"""Two models on the same servers, behind the balancers of deploy/ as their files have them: each is found by its name,
and what becomes of one is nothing to the other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from bench import fleet, recipes
from bench.fleet_load import PROTOCOLS, Clients, Request, Traffic, steady
from bench.fleet_servers import FleetServer
from bench.recipes import Balancer, Recipe
from inflight_tools.common.layout import ENGINE
from inflight_tools.common.report import Failure
from tests.conftest import require_installation
from tests.harness.http_client import metric
from tests.reliability.conftest import Report

pytestmark = [pytest.mark.server, pytest.mark.full]

MODELS = ("llm", "second")
TOKENS = {"llm": 5, "second": 3}
ASKED = 6  # of each model over each protocol
KINDS = ["envoy", "haproxy"]
LOST_S = 5.0  # longer than a balancer takes to notice


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[FleetServer]]:
    require_installation()
    options = argparse.Namespace(openvino=False, engine=ENGINE)
    with fleet.fleet(tmp_path_factory.mktemp("fleet"), options, models=MODELS, count=2) as started:
        yield started


@pytest.fixture(params=KINDS)
def balancer(request: pytest.FixtureRequest, servers: list[FleetServer], tmp_path: Path) -> Iterator[Balancer]:
    if request.param == "haproxy" and not recipes.haproxy_program():
        pytest.skip("haproxy is missing: apt-get install haproxy")
    with fleet.BALANCERS[request.param](tmp_path, Recipe([each.place for each in servers])) as running:
        yield running


def asked(address: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Status and content; the latter None where it is no JSON."""
    request = urllib.request.Request(f"http://{address}{path}", json.dumps(body).encode() if body else None)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            status, content = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    with contextlib.suppress(ValueError):
        return status, json.loads(content)
    return status, None


def generated(servers: Sequence[FleetServer]) -> dict[str, list[float]]:
    """Tokens that each server has made of each model."""
    places = [f"http://127.0.0.1:{each.ports.metrics}/metrics" for each in servers]
    name = "inflight_generation_tokens_total"
    return {model: [metric(place, name, model=model) for place in places] for model in MODELS}


def test_each_model_is_found_by_its_name(balancer: Balancer, servers: list[FleetServer], report: Report) -> None:
    async def ask(session: str) -> list[Request]:
        async with Clients(balancer) as clients:
            wanted = [
                Request(protocol, f"{model} {number}", TOKENS[model], session, model)
                for protocol in PROTOCOLS
                for model in MODELS
                for number in range(ASKED)
            ]
            return [await clients.send(request) for request in wanted]

    for session in ("", "one session"):
        before = generated(servers)
        answers = asyncio.run(ask(session))
        assert all(request.whole for request in answers), [one for one in answers if not one.whole][:3]
        time.sleep(1.5)  # metrics are handed over at an interval
        after = generated(servers)
        for model in MODELS:
            made = [now - then for now, then in zip(after[model], before[model], strict=True)]
            assert sum(made) == TOKENS[model] * ASKED * len(PROTOCOLS), (model, made)
            if session:
                assert sorted(made)[0] % (TOKENS[model] * ASKED) == 0, made  # each protocol hashes for itself
            else:
                assert min(made) > 0, made
            report(f"{model}, {session or 'no session'}: tokens of each server {made}")

    status, listed = asked(balancer.openai, "/v1/models")
    assert status == 200
    assert {model["id"] for model in listed["data"]} == set(MODELS)
    with grpc.insecure_channel(balancer.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for model in MODELS:
            assert asked(balancer.openai, f"/v1/models/{model}")[0] == 200
            assert asked(balancer.http, f"/v2/models/{model}/ready")[0] == 200
            assert stub.ModelReady(pb.ModelReadyRequest(name=model), timeout=10).ready
    assert asked(balancer.openai, "/v1/completions", {"model": "third", "prompt": "a"})[0] == 404
    assert asked(balancer.http, "/v2/models/third/generate", {"text_input": "a"})[0] in (400, 404)


@contextlib.contextmanager
def no_engine(servers: Sequence[FleetServer], model: str) -> Iterator[None]:
    """Kills the engine of that model on all of `servers`, and every next one as soon as it is there."""
    over = threading.Event()

    def keep_killing(server: FleetServer) -> None:
        killed = 0
        while not over.is_set():
            with contextlib.suppress(Failure, KeyError, TypeError, ProcessLookupError):
                pid = server.engine_pid(model)
                if pid and pid != killed:
                    os.kill(pid, signal.SIGKILL)
                    killed = pid
            time.sleep(0.1)

    killers = [threading.Thread(target=keep_killing, args=(server,)) for server in servers]
    for killer in killers:
        killer.start()
    try:
        yield
    finally:
        over.set()
        for killer in killers:
            killer.join(60.0)


def lose_second(servers: Sequence[FleetServer], lost: Sequence[FleetServer]) -> Counter[str]:
    """`second` has no engine on `lost` for a while; what their ports of health said meanwhile, path and status."""
    said: Counter[str] = Counter()
    with no_engine(lost, "second"):
        give_up = time.monotonic() + LOST_S
        while time.monotonic() < give_up:
            for path in ("/ready", "/ready/llm", "/ready/second"):
                said[f"{path} {lost[0].health(path)}"] += 1
            time.sleep(0.1)
    for server in servers:
        server.wait_ready()
    time.sleep(1.5)
    return said


def lose_under_load(
    balancer: Balancer, servers: list[FleetServer], count: int
) -> tuple[dict[str, Traffic], Counter[str], list[float]]:
    """`second` loses its engine on `count` of them: by model what clients saw, what health said, and what `llm` made
    of tokens on each server meanwhile.
    """
    said: Counter[str] = Counter()
    made: list[float] = []

    def happens() -> None:
        before = generated(servers)["llm"]
        said.update(lose_second(servers, servers[:count]))
        made.extend(now - then for now, then in zip(generated(servers)["llm"], before, strict=True))

    traffic = steady(balancer, happens, 1000, models=MODELS)
    of = {model: Traffic([one for one in traffic.requests if one.model == model]) for model in MODELS}
    assert said["/ready/second 503"] > said["/ready/second 200"], said
    assert not said["/ready/llm 503"], said
    assert not of["llm"].lost, of["llm"].lost[:3]
    assert all(request.error for request in of["second"].lost)
    return of, said, made


def told(of: dict[str, Traffic], said: Counter[str]) -> str:
    line = ", ".join(f"{model}: {len(of[model].lost)} of {len(of[model].requests)} lost" for model in MODELS)
    return f"{line}; health said {dict(said)}"


@pytest.mark.parametrize("count", [1, 2], ids=["on one server", "on every server"])
def test_a_model_without_an_engine_takes_no_other_with_it(
    count: int, balancer: Balancer, servers: list[FleetServer], report: Report
) -> None:
    of, said, _ = lose_under_load(balancer, servers, count)
    report(f"second has no engine on {count} of 2: {told(of, said)}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_balancer_may_ask_for_the_model_that_counts(
    kind: str, servers: list[FleetServer], tmp_path: Path, report: Report
) -> None:
    recipe = Recipe([each.place for each in servers], "round robin", health="/ready/llm")
    with fleet.BALANCERS[kind](tmp_path, recipe) as balancer:
        of, said, made = lose_under_load(balancer, servers, 1)
    assert min(made) > 0.6 * max(made), made
    report(f"checks ask /ready/llm: {told(of, said)}; tokens of llm on each server {made}")
