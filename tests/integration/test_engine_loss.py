"""The engine process dies, breaks or stands still: every request ends in UNAVAILABLE at once, and service goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from _server import Server
from tests.harness.grpc_client import GrpcClient, RequestFailed

pytestmark = pytest.mark.server

MakeServer = Callable[..., Server]
ENDLESS = {"max_tokens": 6000, "ignore_eos": True}
SLOW = {"step_ms": 20.0}


def fails(pending: Any) -> tuple[str, float]:
    """(the error, when it came)."""
    with pytest.raises(RequestFailed) as caught:
        pending.result()
    return str(caught.value), time.monotonic()


def answered_again(server: Server, limit_s: float = 20.0, **values: Any) -> float:
    """Seconds until a request was answered; until then each is refused at once."""
    began = time.monotonic()
    with GrpcClient(server.grpc_url) as client:
        while time.monotonic() - began < limit_s:
            asked = time.monotonic()
            try:
                client.start("The capital of France is", stream=False, max_tokens=2, **values).result()
            except RequestFailed as refused:
                assert "try again in a few seconds" in str(refused)
                assert time.monotonic() - asked < 1.0
                time.sleep(0.05)
            else:
                return time.monotonic() - began
    raise AssertionError(f"no request was answered for {limit_s} s")


def test_sigkill_in_the_middle_of_a_stream_of_the_real_model(make_server: MakeServer) -> None:
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


def test_every_kind_of_request_ends_unavailable(make_server: MakeServer) -> None:
    """Streaming, whole, several sequences, and those that still wait in the queue."""
    server = make_server({"llm": {"max_running": 4, "engine_options": SLOW}})
    with GrpcClient(server.grpc_url) as client:
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
        os.kill(server.engine_pids()[0], signal.SIGKILL)
        for pending in running + queued:
            message, ended_at = fails(pending)
            assert ended_at - killed_at < 1.0
            assert "restart" in message
            assert pending.finals == 1
        assert running[1].responses == [], "a whole answer that is not whole is never sent"
    answered_again(server)


def test_the_status_of_a_lost_stream_is_unavailable(make_server: MakeServer) -> None:
    server = make_server({"llm": {"engine_options": SLOW}})
    with GrpcClient(server.grpc_url, status_errors=True) as client:
        pending = client.start("a", **ENDLESS)
        pending.first()
        os.kill(server.engine_pids()[0], signal.SIGKILL)
        assert fails(pending)[0].startswith("UNAVAILABLE: ")
    answered_again(server)


@pytest.mark.parametrize("fault", ["crash_at_token", "raise_at_token"])
def test_an_engine_that_breaks_in_a_step_is_started_again(fault: str, make_server: MakeServer) -> None:
    server = make_server({"llm": {"engine_options": {**SLOW, fault: 10}}})
    with GrpcClient(server.grpc_url) as client:
        pending = client.start("a", return_num_output_tokens=True, **ENDLESS)
        message, _ = fails(pending)
        assert "restart" in message
        assert "simulated fault" not in message, "what went wrong inside is for the log"
        assert sum(response.tokens() for response in pending.responses) <= 9
    answered_again(server)


def test_an_engine_that_stands_still_is_found_by_its_watchdog(make_server: MakeServer) -> None:
    server = make_server({"llm": {"stall_timeout_ms": 1000, "engine_options": SLOW}})
    (pid,) = server.engine_pids()
    with GrpcClient(server.grpc_url) as client:
        pending = client.start("a", **ENDLESS)
        pending.first()
        stopped_at = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        _, ended_at = fails(pending)
    assert 0.8 < ended_at - stopped_at < 3.0
    answered_again(server)
    assert pid not in server.processes(), "the engine that stood still is gone"


def test_an_idle_engine_that_is_lost_comes_back_before_anybody_asks(make_server: MakeServer) -> None:
    server = make_server({"llm": {"engine_options": SLOW}})
    (pid,) = server.engine_pids()
    os.kill(pid, signal.SIGKILL)
    give_up = time.monotonic() + 10.0
    while server.engine_pids() in ([], [pid]) and time.monotonic() < give_up:
        time.sleep(0.05)
    answered_again(server, 10.0)


def test_an_engine_that_always_breaks_is_given_up_and_says_so(make_server: MakeServer) -> None:
    server = make_server({"llm": {"max_restarts": 2, "engine_options": {**SLOW, "crash_at_token": 1}}})
    messages = []
    give_up = time.monotonic() + 30.0
    with GrpcClient(server.grpc_url) as client:
        while time.monotonic() < give_up:
            with pytest.raises(RequestFailed) as caught:
                client.start("a", max_tokens=2).result()
            messages.append(str(caught.value))
            if "not started again" in messages[-1]:
                break
            time.sleep(0.05)
    assert "not started again" in messages[-1]
    assert server.engine_pids() == []
    assert len([message for message in messages if "lost" in message]) == 3, "the first life and two restarts"


def test_requests_of_many_threads_survive_a_kill_in_their_midst(make_server: MakeServer) -> None:
    """Each request ends exactly once: whole, or with UNAVAILABLE; none hangs and none is half."""
    server = make_server({"llm": {"engine_options": {"step_ms": 5.0}}})
    outcomes: list[str] = []

    def ask(number: int) -> None:
        with GrpcClient(server.grpc_url, timeout_s=30.0) as client:
            for turn in range(4):
                values = {"max_tokens": 20, "ignore_eos": True, "return_num_output_tokens": True}
                pending = client.start(f"{number} {turn}", stream=bool(turn % 2), **values)
                try:
                    pending.result()
                except RequestFailed:
                    outcomes.append("unavailable")
                else:
                    outcomes.append("whole" if pending.output_tokens == 20 else "half")
                assert pending.finals == 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    time.sleep(0.15)
    os.kill(server.engine_pids()[0], signal.SIGKILL)
    for thread in threads:
        thread.join(60.0)
    assert not any(thread.is_alive() for thread in threads)
    assert len(outcomes) == 48
    assert set(outcomes) <= {"whole", "unavailable"}
    assert "unavailable" in outcomes
    answered_again(server)
