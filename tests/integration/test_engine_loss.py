"""The engine process dies: every request ends in UNAVAILABLE at once, and service goes on with a new one.

More of this, and what else may befall an engine, is in tests/reliability.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from inflight_tools.server.server import Server, ServerConfig
from tests.harness.grpc_client import GrpcClient, Pending, RequestFailed
from tests.harness.repository import write_model

pytestmark = pytest.mark.server

ENDLESS = {"max_tokens": 6000, "ignore_eos": True}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that need no real model: `four` has four places, `quick` as many as it likes."""
    root = tmp_path_factory.mktemp("loss")
    slow = {"engine": "simulated", "max_restarts": 100, "engine_options": {"step_ms": 20.0}}
    write_model(root / "models", "four", {**slow, "max_running": 4})
    write_model(root / "models", "quick", {**slow, "engine_options": {"step_ms": 5.0}})
    log = root / "tritonserver.log"
    config = ServerConfig(repository=root / "models", models=("four", "quick"), log=log, drain_timeout_s=0.0)
    with Server(config) as running:
        running.wait_ready(120.0)
        yield running
    assert running.processes() == []


def engine_of(server: Server, model: str) -> int:
    """The engine process of one model: its parent is the stub, whose command line names the model."""
    (pid,) = (pid for pid in server.engine_pids() if f"/{model}/" in " ".join(psutil.Process(pid).parent().cmdline()))
    return pid


def fails(pending: Pending) -> tuple[str, float]:
    """(the error, when it came)."""
    with pytest.raises(RequestFailed) as caught:
        pending.result()
    return str(caught.value), time.monotonic()


def answered_again(server: Server, model: str = "llm", limit_s: float = 60.0) -> float:
    """Seconds until a request was answered; until then each is refused at once, with what to do."""
    began = time.monotonic()
    with GrpcClient(server.grpc_url, model) as client:
        while time.monotonic() - began < limit_s:
            asked = time.monotonic()
            pending = client.start("The capital of France is", stream=False, max_tokens=2)
            refused = _error(pending)
            if refused is None:
                return time.monotonic() - began
            assert "try again in a few seconds" in refused
            assert time.monotonic() - asked < 1.0
            time.sleep(0.05)
    raise AssertionError(f"no request was answered for {limit_s} s")


def _error(pending: Pending) -> str | None:
    try:
        pending.result()
    except RequestFailed as error:
        return str(error)
    return None


def test_sigkill_in_the_middle_of_a_stream_of_the_real_model(make_server: Callable[..., Server]) -> None:
    server = make_server(engine="openvino")
    (first_pid,) = server.engine_pids()
    with GrpcClient(server.grpc_url) as client:
        before = client.start("Water boils at", stream=False, max_tokens=12).result().text
        pending = client.start("Once upon a time", **ENDLESS)
        for _ in range(5):
            pending.first()
        killed_at = time.monotonic()
        os.kill(first_pid, signal.SIGKILL)
        message, ended_at = fails(pending)
        assert ended_at - killed_at < 1.0
        assert "engine" in message
        assert "try again" in message, "it says what to do"
        assert pending.finals == 1
    seconds = answered_again(server)
    print(f"ended {ended_at - killed_at:.3f} s after the kill, answered again {seconds:.2f} s after that")
    (second_pid,) = server.engine_pids()
    assert second_pid != first_pid
    with GrpcClient(server.grpc_url) as client:
        assert client.start("Water boils at", stream=False, max_tokens=12).result().text == before


def test_every_kind_of_request_ends_unavailable(simulated: Server) -> None:
    """Streaming, whole, several sequences, and those that still wait in the queue."""
    with GrpcClient(simulated.grpc_url, "four") as client:
        running = [
            client.start("a", **ENDLESS),
            client.start("b", stream=False, **ENDLESS),
            client.start("c", num_return_sequences=2, temperature=1.0, seed=1, **ENDLESS),
        ]
        running[0].first()
        running[2].first()
        queued = [client.start(f"queued {number}", stream=bool(number % 2), **ENDLESS) for number in range(10)]
        time.sleep(0.3)
        assert not any(pending.done.is_set() for pending in running + queued)
        killed_at = time.monotonic()
        os.kill(engine_of(simulated, "four"), signal.SIGKILL)
        for pending in running + queued:
            message, ended_at = fails(pending)
            assert ended_at - killed_at < 1.0
            assert "restart" in message
            assert pending.finals == 1
        assert running[1].responses == [], "a whole answer that is not whole is never sent"
    answered_again(simulated, "four")


def test_the_status_of_a_lost_stream_is_unavailable(simulated: Server) -> None:
    with GrpcClient(simulated.grpc_url, "four", status_errors=True) as client:
        pending = client.start("a", **ENDLESS)
        pending.first()
        os.kill(engine_of(simulated, "four"), signal.SIGKILL)
        assert fails(pending)[0].startswith("UNAVAILABLE: ")
    answered_again(simulated, "four")


def test_an_idle_engine_that_is_lost_comes_back_before_anybody_asks(simulated: Server) -> None:
    pid = engine_of(simulated, "four")
    os.kill(pid, signal.SIGKILL)
    give_up = time.monotonic() + 60.0
    while len(set(simulated.engine_pids()) - {pid}) < 2 and time.monotonic() < give_up:
        time.sleep(0.05)
    assert engine_of(simulated, "four") != pid
    answered_again(simulated, "four")


def test_requests_of_many_threads_survive_a_kill_in_their_midst(simulated: Server) -> None:
    """Each request ends exactly once: whole, or with UNAVAILABLE; none hangs and none is half."""
    outcomes: list[str] = []

    def ask(number: int) -> None:
        values: dict[str, Any] = {"max_tokens": 20, "ignore_eos": True, "return_num_output_tokens": True}
        with GrpcClient(simulated.grpc_url, "quick") as client:
            for turn in range(4):
                pending = client.start(f"{number} {turn}", stream=bool(turn % 2), **values)
                refused = _error(pending)
                whole = "whole" if pending.output_tokens == 20 else "half"
                outcomes.append("unavailable" if refused else whole)
                assert pending.finals == 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    time.sleep(0.15)
    os.kill(engine_of(simulated, "quick"), signal.SIGKILL)
    for thread in threads:
        thread.join(60.0)
    assert not any(thread.is_alive() for thread in threads)
    assert len(outcomes) == 48
    assert set(outcomes) <= {"whole", "unavailable"}
    assert "unavailable" in outcomes
    answered_again(simulated, "quick")
