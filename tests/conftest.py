"""Fixtures for tests against a real tritonserver, and the rules of the tiers.

A test in tests/unit without a mark belongs to the tier `fast`. Nothing here skips: what a test needs and does not find
fails it, with the command that makes it.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from inflight_tools.common.layout import ENGINE, MODEL_REPOSITORY, WRAPPER
from inflight_tools.server.server import Server, ServerConfig
from tests.harness.grpc_client import GrpcClient
from tests.harness.http_client import HttpClient
from tests.harness.repository import write_model

TIERS = {"fast", "server", "build", "full"}
READY_TIMEOUT_S = 120.0

# Two shared cores: how long an example takes says nothing about the code.
settings.register_profile("inflight", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("inflight")


def pytest_configure() -> None:
    """Take Ctrl-C even where the shell that started us ignores it for its background jobs: tests send it to children,
    which inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["INFLIGHT_GATEWAY_PORT"] = "0"  # of `inflight serve`, where a test asks for no gateway of its own


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests of tests/unit their tier, and refuse a test that belongs to `fast` and needs a server or long."""
    for item in items:
        marks = {mark.name for mark in item.iter_markers()} & TIERS
        if not marks and "unit" in item.path.parts:
            item.add_marker(pytest.mark.fast)
        if "fast" in marks and len(marks) > 1:
            raise pytest.UsageError(f"{item.nodeid} is marked fast and {', '.join(sorted(marks - {'fast'}))}")
        fixtures = getattr(item, "fixturenames", ())
        if {"server", "make_server", "grpc", "http"} & set(fixtures):
            if "fast" in {mark.name for mark in item.iter_markers()}:
                raise pytest.UsageError(f"{item.nodeid} is marked fast and uses a server")
            item.add_marker(pytest.mark.server)


def require_installation() -> None:
    """Fail where there is no server or no engine to test with."""
    for path, what in ((WRAPPER, "no tritonserver"), (ENGINE / "engine.json", "no engine")):
        if not path.exists():
            pytest.fail(f"there is {what} at {path}: run scripts/test.sh, or scripts/quickstart.sh once", pytrace=False)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real tritonserver with the real model `llm`, shared by all tests that leave it as they found it."""
    require_installation()
    log = tmp_path_factory.mktemp("server") / "tritonserver.log"
    config = ServerConfig(repository=MODEL_REPOSITORY, models=("llm",), log=log, drain_timeout_s=0.0)
    with Server(config) as running:
        running.wait_ready(READY_TIMEOUT_S)
        yield running


MakeServer = Callable[..., Server]


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[MakeServer]:
    """A function that starts a server of a test's own; it is stopped, and its leavings checked, when the test ends.

    `make_server(models={name: parameters}, engine="simulated", batched=False, ready=True, **config)`: `models` maps
    names to the `parameters` of config.pbtxt (default: one model `llm`); `engine` is the parameter of that name for
    models that do not set it; `batched` gives them max_batch_size 1; `config` goes to `ServerConfig`. With
    `ready=False` it returns before the server is ready.
    """
    require_installation()
    numbers = itertools.count(1)
    started: list[Server] = []

    def make(
        models: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        engine: str = "simulated",
        batched: bool = False,
        ready: bool = True,
        pbtxt: str = "",
        **config: Any,
    ) -> Server:
        number = next(numbers)
        repository = tmp_path / f"repository{number}"
        for name, parameters in (models or {"llm": {}}).items():
            write_model(repository, name, {"engine": engine, **parameters}, max_batch_size=int(batched), config=pbtxt)
        settings_ = {
            "models": tuple(models or ["llm"]),
            "log": tmp_path / f"tritonserver{number}.log",
            "drain_timeout_s": 0.0,
            **config,
        }
        server = Server(ServerConfig(repository=repository, **settings_))
        started.append(server)
        server.start()
        if ready:
            server.wait_ready(READY_TIMEOUT_S)
        return server

    yield make
    for server in started:
        server.stop()
        assert server.processes() == []


@pytest.fixture
def grpc(server: Server) -> Iterator[GrpcClient]:
    """A gRPC client of the shared server."""
    with GrpcClient(server.grpc_url) as client:
        yield client


@pytest.fixture
def http(server: Server) -> HttpClient:
    """An HTTP client of the shared server."""
    return HttpClient(server.http_url)
