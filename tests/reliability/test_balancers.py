"""What the balancers of deploy/ make of servers' health, before servers of ours that say of it what a test wants."""

from __future__ import annotations

import contextlib
import time
import urllib.error
import urllib.request
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

pytestmark = pytest.mark.server

NOTICED_S = 2.0  # two checks of 0.5 s in a row, and a moment
ASKED = 12


class Door(BaseHTTPRequestHandler):
    """Health, Triton's HTTP and a gateway's: all of them at once."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = cast(Any, self.server)
        healthy = self.path != "/ready" or server.ready()  # /ready/llm always is
        server.count(self.path)
        self.send_response(200 if healthy else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Doors(ThreadingHTTPServer):
    """Without a word about balancers that hang up."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class CountingTriton(FakeTriton):
    """One that counts what it is asked about its model, too."""

    def ModelConfig(self, request: Any, context: Any) -> Any:
        self.asked += 1
        return super().ModelConfig(request, context)


class Fake:
    """A server of a fleet: ready or not, and what it was asked."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.ready = True
        self.triton = CountingTriton()
        self.asked = 0
        doors = [stack.enter_context(self._door()) for _ in range(3)]
        grpc_port = int(stack.enter_context(serving_grpc(self.triton)).rpartition(":")[2])
        self.place = Place(Ports(doors[0], grpc_port, 9, doors[1], 0), doors[2])

    @contextlib.contextmanager
    def _door(self) -> Iterator[int]:
        server: Any = Doors(("127.0.0.1", 0), Door)
        server.ready = lambda: self.ready
        server.count = self._count
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()

    def _count(self, path: str) -> None:
        self.asked += not path.startswith("/ready")


class Fleet:
    """Two fakes behind a balancer."""

    def __init__(self, fakes: list[Fake], balancer: Balancer) -> None:
        self.fakes = fakes
        self._balancer = balancer
        self._channel = grpc.insecure_channel(balancer.grpc)

    def ask(self, front: str, session: str) -> bool:
        """One request to one of the fronts; whether a server answered."""
        headers = {"x-session-id": session} if session else {}
        if front == "grpc":
            try:
                stub = pb_grpc.GRPCInferenceServiceStub(self._channel)
                stub.ModelConfig(pb.ModelConfigRequest(name="llm"), timeout=5, metadata=tuple(headers.items()))
            except grpc.RpcError:
                return False
            return True
        address, path = {
            "http": (self._balancer.http, "/v2/models/llm/config"),
            "openai": (self._balancer.openai, "/v1/models"),
        }[front]
        try:
            with urllib.request.urlopen(urllib.request.Request(f"http://{address}{path}", headers=headers), timeout=5):
                return True
        except urllib.error.HTTPError:
            return False

    def answered(self, front: str, sessions: bool) -> list[int]:
        """Of some requests, how many each server answered."""
        before = [fake.asked + fake.triton.asked for fake in self.fakes]
        answers = [self.ask(front, f"session {number}" if sessions else "") for number in range(ASKED)]
        found = [fake.asked + fake.triton.asked - then for fake, then in zip(self.fakes, before, strict=True)]
        assert sum(found) == sum(answers)
        return found


FULL = pytest.mark.full
BALANCERS = ["envoy", pytest.param("haproxy", marks=FULL)]


@contextlib.contextmanager
def behind(kind: str, folder: Path, health: str = "/ready") -> Iterator[Fleet]:
    if kind == "haproxy" and not recipes.haproxy_program():
        pytest.skip("haproxy is missing: apt-get install haproxy")
    with contextlib.ExitStack() as stack:
        fakes = [Fake(stack) for _ in range(2)]
        recipe = Recipe([each.place for each in fakes], "round robin", health=health)
        yield Fleet(fakes, stack.enter_context(fleet.BALANCERS[kind](folder, recipe)))


WAYS = [(front, sessions) for front in ("grpc", "http", "openai") for sessions in (False, True)]


@pytest.mark.parametrize("kind", BALANCERS)
def test_one_that_is_not_ready_gets_nothing_and_where_none_is_all_have_the_word(kind: str, tmp_path: Path) -> None:
    """None is ready when one model's engines start again everywhere, say: other models are served nevertheless, and
    what waits for that one is held.
    """
    with behind(kind, tmp_path) as pair:
        for first, second in ((True, True), (False, True), (False, False), (True, False)):
            if (first, second) != (pair.fakes[0].ready, pair.fakes[1].ready):
                pair.fakes[0].ready, pair.fakes[1].ready = first, second
                time.sleep(NOTICED_S)
            for way in WAYS:
                answered = pair.answered(*way)
                assert sum(answered) == ASKED, (way, answered)
                if first == second:
                    assert min(answered) > 0, (way, answered)
                else:
                    assert answered == [ASKED * first, ASKED * second], (way, answered)


@FULL
@pytest.mark.parametrize("kind", ["envoy", "haproxy"])
def test_checks_may_ask_for_one_model(kind: str, tmp_path: Path) -> None:
    with behind(kind, tmp_path, "/ready/llm") as pair:
        pair.fakes[0].ready = False  # another model of it
        time.sleep(NOTICED_S)
        for way in WAYS:
            assert min(pair.answered(*way)) > 0, way
