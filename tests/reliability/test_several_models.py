"""Two models on the same real servers, behind the balancers of deploy/: each is found by its name.

What becomes of one while the other has no engine: test_models_by_name.py.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from bench import fleet, recipes
from bench.fleet_load import PROTOCOLS, Clients, Request
from bench.fleet_servers import FleetServer
from bench.recipes import Balancer, Recipe
from inflight_tools.common.layout import ENGINE
from tests.conftest import require_installation
from tests.harness.http_client import metric
from tests.reliability.conftest import Report

pytestmark = [pytest.mark.server, pytest.mark.full]

MODELS = ("llm", "second")
TOKENS = {"llm": 5, "second": 3}
ASKED = 6  # of each model over each protocol


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[FleetServer]]:
    require_installation()
    options = argparse.Namespace(openvino=False, engine=ENGINE)
    with fleet.fleet(tmp_path_factory.mktemp("fleet"), options, models=MODELS, count=2) as started:
        yield started


@pytest.fixture(params=["envoy", "haproxy"])
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
