"""Clients that leave: the engine stops working for them, nobody else notices."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator

import psutil
import pytest

from inflight_tools.server.server import Server
from tests.harness.grpc_client import GrpcClient, RequestFailed

pytestmark = pytest.mark.server

ENDLESS = {"max_tokens": 6000, "ignore_eos": True}
# Well under the minute that the work would take. About 0.1 s on an idle machine; a step is not cut short, and beside
# other tests the one that reads a prompt takes seconds.
STOPS_WITHIN_S = 10.0
IDLE_SHARE = 0.15  # of a core; at work an engine takes what it gets beside other tests


def busy(server: Server, seconds: float = 0.4) -> float:
    """CPU seconds per second that the engine process uses now."""
    (pid,) = server.engine_pids()
    process = psutil.Process(pid)
    before = process.cpu_times()
    began = time.monotonic()
    time.sleep(seconds)
    after = process.cpu_times()
    return ((after.user + after.system) - (before.user + before.system)) / (time.monotonic() - began)


def wait_idle(server: Server, limit_s: float = STOPS_WITHIN_S) -> float:
    """Seconds until the engine did nothing for a while."""
    began = time.monotonic()
    while time.monotonic() - began < limit_s + 5.0:
        waited = time.monotonic() - began
        if busy(server, 0.25) < IDLE_SHARE:
            return waited
    return time.monotonic() - began


@pytest.fixture(autouse=True)
def nothing_is_left(server: Server) -> Iterator[None]:
    """Each test leaves an idle engine that answers at once."""
    pids = server.engine_pids()
    assert wait_idle(server) < STOPS_WITHIN_S
    yield
    assert wait_idle(server) < STOPS_WITHIN_S, "the engine goes on working for a client that has left"
    assert server.engine_pids() == pids
    with GrpcClient(server.grpc_url) as client:
        assert client.generate("The capital of France is", max_tokens=2).text.startswith(" Paris")


def test_leaving_a_stream_stops_the_engine(server: Server) -> None:
    client = GrpcClient(server.grpc_url)
    pending = client.start("Once upon a time", **ENDLESS)
    pending.first()
    assert busy(server) > IDLE_SHARE, "the engine is at work"
    client.close(cancel=True)


def test_leaving_before_the_first_token_stops_the_engine(server: Server) -> None:
    client = GrpcClient(server.grpc_url)
    # Long enough to be read when the client leaves; a step is not cut short, so short enough for a busy machine.
    client.start(" ".join(f"item {number}" for number in range(400)), **ENDLESS)
    time.sleep(0.1)
    client.close(cancel=True)


def test_leaving_with_a_whole_answer_under_way_stops_the_engine(server: Server) -> None:
    client = GrpcClient(server.grpc_url)
    client.start("Once upon a time", stream=False, **ENDLESS)
    time.sleep(0.5)
    assert busy(server) > IDLE_SHARE
    client.close(cancel=True)


def test_all_requests_of_a_stream_end_with_it_and_those_of_others_do_not(server: Server, grpc: GrpcClient) -> None:
    other = grpc.start("The capital of France is", max_tokens=150, ignore_eos=True, return_num_output_tokens=True)
    other.first()
    client = GrpcClient(server.grpc_url)
    leaving = [client.start(f"Story {number}:", **ENDLESS) for number in range(8)]
    for pending in leaving:
        pending.first()
    client.close(cancel=True)
    other.result()
    assert other.output_tokens == 150
    assert other.finals == 1
    for pending in leaving:
        with pytest.raises(RequestFailed, match="CANCELLED"):
            pending.result()


def test_leaving_a_stream_of_http_stops_the_engine(server: Server) -> None:
    connection = http.client.HTTPConnection(server.http_url, timeout=30)
    body = json.dumps({"text_input": "Once upon a time", "stream": True, **ENDLESS})
    connection.request("POST", "/v2/models/llm/generate_stream", body)
    answer = connection.getresponse()
    assert answer.readline().startswith(b"data: ")
    assert busy(server) > IDLE_SHARE
    connection.close()
    answer.close()


def test_several_sequences_of_one_request_all_end(server: Server) -> None:
    client = GrpcClient(server.grpc_url)
    pending = client.start("Once upon a time", num_return_sequences=4, temperature=1.0, seed=1, **ENDLESS)
    for _ in range(8):
        pending.first()
    client.close(cancel=True)


def test_a_storm_of_clients_that_leave_at_any_moment(server: Server) -> None:
    for round_ in range(4):
        clients = [GrpcClient(server.grpc_url) for _ in range(6)]
        for place, client in enumerate(clients):
            for number in range(3):
                client.start(f"{round_} {place} {number}: Once upon a time", stream=bool(number), **ENDLESS)
        for place, client in enumerate(clients):
            time.sleep(0.02 * place)
            client.close(cancel=True)
