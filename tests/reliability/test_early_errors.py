"""Errors with a gRPC status, right after the arrival: Triton's front end has a race there, see `serving.refusals`."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from inflight_tools.server.server import Server
from tests.harness.grpc_client import GrpcClient, RequestFailed

# A server that sends errors at once was ended by both floods of 60 s with 8 clients, after 12 and 23 s, and by one of
# three with 16: to pass once is no proof, to fail is one.
RATES = [
    pytest.param(8, 3.0, 0, id="3 s"),
    pytest.param(8, 60.0, 0, id="60 s", marks=pytest.mark.full),
    pytest.param(16, 60.0, 4, id="60 s, busy", marks=pytest.mark.full),
]


def burn() -> None:
    while True:
        pass


@contextmanager
def busy_machine(processes: int) -> Iterator[None]:
    """More work than cores, so that the server's threads stand still at any point."""
    context = multiprocessing.get_context("spawn")
    burners = [context.Process(target=burn, daemon=True) for _ in range(processes)]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.join(5.0)


@pytest.mark.parametrize(("clients", "duration_s", "burners"), RATES)
def test_errors_answered_at_once_do_not_bring_the_server_down(
    make_server: Callable[..., Server], clients: int, duration_s: float, burners: int
) -> None:
    server = make_server()
    messages: list[str] = []
    until = time.monotonic() + duration_s

    def ask() -> None:
        while time.monotonic() < until and server.exit_status() is None:
            with GrpcClient(server.grpc_url, status_errors=True, timeout_s=10.0) as client:
                try:
                    client.start("a", max_tokens=-1).result()
                except (RequestFailed, TimeoutError) as error:
                    messages.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    with busy_machine(burners):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(duration_s + 30.0)
    assert server.exit_status() is None, server.log_text()[-3000:]
    assert len(messages) >= 10 * duration_s
    assert {message.split(":")[0] for message in messages} == {"INVALID_ARGUMENT"}
    assert all("max_tokens" in message for message in messages)
