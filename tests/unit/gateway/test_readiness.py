"""When the gateway says that it is ready: its Triton comes and goes, and the server's own health has its word."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, cast

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from inflight_tools.server.server import Ports
from tests.harness.gateway import Gateway, running
from tests.unit.gateway.test_paths import HELLO, FakeTriton

NOTICED_S = 2.5


class Door(BaseHTTPRequestHandler):
    """The server's port of health, which says what the test wants."""

    def do_GET(self) -> None:
        status, body = cast(Any, self.server).says
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


READY = (200, b'{"live": true, "ready": true, "reason": "", "models": {}}')
HALF = (
    503,
    b'{"live": true, "ready": false, "reason": "model second: its engine restarts", "models": {"llm": {"ready": true, '
    b'"reason": ""}, "second": {"ready": false, "reason": "its engine restarts"}}}',
)
DRAINS = (503, b'{"live": true, "ready": false, "reason": "model llm: it is draining", "models": {}}')


@pytest.fixture
def door() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    server.says = READY
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def triton(port: int, servicer: FakeTriton | None = None) -> grpc.Server:
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(servicer or FakeTriton(), server)
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    server.start()
    return server


def readiness(gateway: Gateway, path: str = "/ready") -> tuple[int, str]:
    status, _, body = gateway.call("GET", path)
    return status, json.loads(body)["reason"]


def becomes(condition: Callable[[], bool], within_s: float) -> None:
    give_up = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_a_triton_that_goes_is_503_at_once_and_one_that_comes_back_is_found_again() -> None:
    port = Ports.free().grpc
    first = triton(port)
    with running(f"127.0.0.1:{port}") as gateway:
        gateway.wait_ready()
        assert gateway.call("POST", "/v1/chat/completions", HELLO)[0] == 200
        first.stop(0).wait()
        began = time.monotonic()
        status, headers, body = gateway.call("POST", "/v1/chat/completions", HELLO)
        assert time.monotonic() - began < 1.0
        assert (status, json.loads(body)["error"]["code"]) == (503, "unavailable")
        assert headers["retry-after"]
        becomes(lambda: readiness(gateway)[0] == 503, NOTICED_S)
        assert gateway.call("GET", "/live")[0] == 200
        second = triton(port)
        becomes(lambda: readiness(gateway)[0] == 200, NOTICED_S)
        assert gateway.call("POST", "/v1/chat/completions", HELLO)[0] == 200
        second.stop(0).wait()


def test_the_servers_health_decides_and_what_is_no_health_counts_for_nothing(door: Any) -> None:
    port = Ports.free().grpc
    server = triton(port)
    with running(f"127.0.0.1:{port}", "--health", f"127.0.0.1:{door.server_port}") as gateway:
        gateway.wait_ready()
        door.says = DRAINS
        becomes(lambda: readiness(gateway) == (503, "model llm: it is draining"), NOTICED_S)
        assert gateway.call("POST", "/v1/chat/completions", HELLO)[0] == 200, "within its notice it serves all the same"
        door.says = READY
        becomes(lambda: readiness(gateway) == (200, ""), NOTICED_S)
        for nonsense in ((503, b"[]"), (404, DRAINS[1])):
            door.says = DRAINS
            becomes(lambda: readiness(gateway)[0] == 503, NOTICED_S)
            door.says = nonsense  # Triton's own readiness counts alone
            becomes(lambda: readiness(gateway)[0] == 200, NOTICED_S)
        door.says = DRAINS
        becomes(lambda: readiness(gateway)[0] == 503, NOTICED_S)
        door.shutdown()
        door.server_close()
        becomes(lambda: readiness(gateway)[0] == 200, NOTICED_S)
    server.stop(0).wait()


def test_of_two_servers_the_one_that_drains_gets_nothing_new(door: Any) -> None:
    ports = [Ports.free().grpc, Ports.free().grpc]
    fakes = [FakeTriton(), FakeTriton()]
    servers = [triton(port, fake) for port, fake in zip(ports, fakes, strict=True)]
    tritons = [word for port in ports[1:] for word in ("--triton", f"127.0.0.1:{port}")]
    with running(f"127.0.0.1:{ports[0]}", *tritons, "--health", f"127.0.0.1:{door.server_port}") as gateway:
        gateway.wait_ready()
        door.says = DRAINS
        time.sleep(NOTICED_S / 2)
        before = fakes[0].asked
        for _ in range(10):
            assert readiness(gateway) == (200, "")
            assert gateway.call("POST", "/v1/chat/completions", HELLO)[0] == 200
        assert (fakes[0].asked - before, fakes[1].asked) == (0, 10)
    for server in servers:
        server.stop(0).wait()


def test_a_model_that_is_not_ready_takes_no_other_with_it(door: Any) -> None:
    ports = [Ports.free().grpc, Ports.free().grpc]
    fakes = [FakeTriton(), FakeTriton()]
    servers = [triton(port, fake) for port, fake in zip(ports, fakes, strict=True)]
    health = ("--health", f"127.0.0.1:{door.server_port}")
    with running(f"127.0.0.1:{ports[0]}", *health) as gateway:
        gateway.wait_ready()
        assert readiness(gateway, "/ready/llm") == (200, "")
        door.says = HALF
        becomes(lambda: readiness(gateway) == (503, "model second: its engine restarts"), NOTICED_S)
        assert readiness(gateway, "/ready/llm") == readiness(gateway, "/health/ready/llm") == (200, "")
        assert readiness(gateway, "/ready/third") == (404, "there is no such model")
        door.says = DRAINS
        becomes(lambda: readiness(gateway, "/ready/llm") == (503, "model llm: it is draining"), NOTICED_S)
    door.says = HALF
    with running(f"127.0.0.1:{ports[0]}", "--triton", f"127.0.0.1:{ports[1]}", *health) as gateway:
        gateway.wait_ready()
        time.sleep(NOTICED_S / 2)
        before = [fake.asked for fake in fakes]
        for _ in range(10):
            assert gateway.call("POST", "/v1/chat/completions", HELLO)[0] == 200
        assert [fake.asked - begun for fake, begun in zip(fakes, before, strict=True)] == [5, 5]
    for server in servers:
        server.stop(0).wait()
