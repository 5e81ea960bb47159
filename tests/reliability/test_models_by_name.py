"""Two models on two servers behind a real balancer and real gateways: each is found by its name, whatever becomes of
the other. The Tritons are ours.
"""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from bench import fleet, recipes
from bench.recipes import Balancer, Place, Recipe
from inflight_tools.server.server import Ports
from tests.harness.fake_triton import FakeTriton
from tests.harness.fake_triton import serving as serving_grpc
from tests.harness.gateway import Gateway, running

pytestmark = [pytest.mark.server, pytest.mark.full]

MODELS = ("llm", "second")
NOTICED_S = 3.0  # the gateway's two looks a second, then the balancer's two checks
ASKED = 8


class TwoModels(FakeTriton):
    """Both of them, and how often each was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.by_model: Counter[str] = Counter()

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        index = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(models=[index(name=name, version="1", state="READY") for name in MODELS])

    def ModelReady(self, request: Any, context: Any) -> Any:
        return pb.ModelReadyResponse(ready=request.name in MODELS)

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:
        first = next(iter(requests))
        self.by_model[first.model_name] += any(each.name == "messages" for each in first.inputs)
        yield from super().ModelStreamInfer(iter([first]), context)


class Health(BaseHTTPRequestHandler):
    """The server's port of health: `second` is ready or not."""

    def do_GET(self) -> None:
        server = cast(Any, self.server)
        models = {"llm": {"ready": True}, "second": {"ready": server.second}}
        reason = "" if server.second else "model second: the engine is restarting"
        body = json.dumps({"live": True, "ready": server.second, "reason": reason, "models": models}).encode()
        self.send_response(200 if server.second or self.path == "/ready/llm" else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Doors(ThreadingHTTPServer):
    """Without a word about balancers that hang up."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextlib.contextmanager
def health() -> Iterator[Any]:
    server: Any = Doors(("127.0.0.1", 0), Health)
    server.second = True
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Fleet:
    """Two servers, a gateway before each, and a balancer before all."""

    def __init__(self, kind: str, folder: Path, stack: contextlib.ExitStack) -> None:
        self.tritons = [TwoModels() for _ in range(2)]
        self.doors = [stack.enter_context(health()) for _ in self.tritons]
        self.gateways: list[Gateway] = []
        places = []
        for triton, door in zip(self.tritons, self.doors, strict=True):
            address = stack.enter_context(serving_grpc(triton))
            gateway = stack.enter_context(running(address, "--health", f"127.0.0.1:{door.server_port}"))
            gateway.wait_ready()
            self.gateways.append(gateway)
            grpc_port = int(address.rpartition(":")[2])
            places.append(Place(Ports(door.server_port, grpc_port, 9, door.server_port, 0), gateway.port))
        self.balancer: Balancer = stack.enter_context(fleet.BALANCERS[kind](folder, Recipe(places, "round robin")))

    def openai(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"http://{self.balancer.openai}{path}", data)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def answered(self) -> dict[str, list[int]]:
        """Of some requests to each model through the balancer, how many each server had; all of them are answered."""
        before = [Counter(each.by_model) for each in self.tritons]
        for model in MODELS:
            for number in range(ASKED):
                body = {"model": model, "messages": [{"role": "user", "content": f"hello {number}"}]}
                status, answer = self.openai("/v1/chat/completions", body)
                assert (status, answer["model"]) == (200, model), answer
                assert answer["choices"][0]["message"]["content"] == "one two"
        moved = [each.by_model - then for each, then in zip(self.tritons, before, strict=True)]
        return {model: [each[model] for each in moved] for model in MODELS}


@pytest.mark.parametrize("kind", ["envoy", "haproxy"])
def test_each_model_is_found_whatever_becomes_of_the_other(kind: str, tmp_path: Path) -> None:
    if kind == "haproxy" and not recipes.haproxy_program():
        pytest.skip("haproxy is missing: apt-get install haproxy")
    with contextlib.ExitStack() as stack:
        both = Fleet(kind, tmp_path, stack)
        assert {model["id"] for model in both.openai("/v1/models")[1]["data"]} == set(MODELS)
        assert both.openai("/v1/chat/completions", {"model": "third", "messages": []})[0] == 404
        with grpc.insecure_channel(both.balancer.grpc) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            ready = {name: stub.ModelReady(pb.ModelReadyRequest(name=name), timeout=5).ready for name in MODELS}
        assert ready == {"llm": True, "second": True}
        assert all(min(shares) > 0 and sum(shares) == ASKED for shares in both.answered().values())

        both.doors[0].second = False  # its engine starts again on one server: the other has both models' requests
        time.sleep(NOTICED_S)
        assert both.gateways[0].call("GET", "/ready")[0] == 503
        assert both.gateways[0].call("GET", "/ready/second")[0] == 503
        assert both.gateways[0].call("GET", "/ready/llm")[0] == 200
        assert both.answered() == {model: [0, ASKED] for model in MODELS}

        both.doors[1].second = False  # and on the other: nobody is ready as a whole, and each model is asked for still
        time.sleep(NOTICED_S)
        assert all(min(shares) > 0 and sum(shares) == ASKED for shares in both.answered().values())

        both.doors[1].second = True
        time.sleep(NOTICED_S)
        assert both.answered() == {model: [0, ASKED] for model in MODELS}
