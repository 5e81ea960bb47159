"""Several gateway processes on one port: the real ones, before a Triton of ours."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inflight_tools.common.layout import REPOSITORY
from tests.harness.fake_triton import FakeTriton, serving
from tests.harness.gateway import Gateway, running

WORKERS = 2


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def value(gateway: Gateway, name: str) -> float:
    text = gateway.call("GET", "/metrics")[2].decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def ask(gateway: Gateway, act: str = "hello", stream: bool = False) -> tuple[int, bytes]:
    body = {"model": "llm", "messages": [{"role": "user", "content": act}], "stream": stream}
    status, _, data = gateway.call("POST", "/v1/chat/completions", body)
    return status, data


@contextlib.contextmanager
def several() -> Iterator[Gateway]:
    with serving(FakeTriton()) as triton, running(triton, "--workers", str(WORKERS), "--drain-notice", "1") as found:
        found.wait_ready()
        for _ in range(40):  # the kernel spreads them: each worker has answered, so that each has started
            found.call("GET", "/live")
        assert len(children(found.process.pid)) == WORKERS
        yield found


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with several() as found:
        yield found


def gone(pids: list[int], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_their_counts_are_one_and_a_worker_that_dies_is_replaced(gateway: Gateway) -> None:
    pids = children(gateway.process.pid)
    for _ in range(24):
        assert ask(gateway)[0] == 200
    total = 'inflight_gateway_requests_total{route="/v1/chat/completions",status="200"}'
    end = time.monotonic() + 5
    while value(gateway, total) < 24 and time.monotonic() < end:  # counted when the client has its answer already
        time.sleep(0.05)
    for _ in range(6):  # whichever worker answers
        assert value(gateway, 'inflight_gateway_requests_total{route="/v1/chat/completions",status="200"}') == 24
        assert value(gateway, "inflight_gateway_time_to_first_token_seconds_count") == 24
        assert value(gateway, 'inflight_gateway_tokens_total{kind="generation"}') == 48
        assert value(gateway, "inflight_gateway_requests_in_flight") == 0
    cpu = [sum(map(int, Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[13:15])) for pid in pids]
    assert all(cpu)
    os.kill(pids[0], signal.SIGKILL)
    for _ in range(30):  # what comes to its socket meanwhile waits for the next one
        assert ask(gateway)[0] == 200
    end = time.monotonic() + 5
    while value(gateway, total) < 54 and time.monotonic() < end:
        time.sleep(0.05)
    assert value(gateway, total) == 54
    now = children(gateway.process.pid)
    assert len(now) == WORKERS
    assert pids[0] not in now


def test_a_drain_is_all_workers_drain() -> None:
    with several() as gateway:
        pids = children(gateway.process.pid)
        gateway.terminate()
        time.sleep(0.4)
        for _ in range(8):
            assert gateway.call("GET", "/ready")[0] == 503
            assert ask(gateway)[0] == 200  # the notice
        assert gateway.process.wait(15) == 0
        assert gone(pids, 1)


def test_workers_do_not_outlive_their_parent() -> None:
    with several() as gateway:
        pids = children(gateway.process.pid)
        gateway.process.kill()
        assert gone(pids, 15)


def test_a_port_that_another_has_is_not_shared_in_silence(gateway: Gateway) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "inflight_gateway", "--workers", "2", "--port", str(gateway.port)],
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY / "gateway")),
        capture_output=True, encoding="utf-8", timeout=30,
    )  # fmt: skip
    assert run.returncode == 2
    assert f"port {gateway.port} on 127.0.0.1 cannot be used" in run.stderr


@pytest.mark.full
def test_workers_that_cannot_live_end_the_gateway() -> None:
    with running("127.0.0.1:1", "--workers", "2") as found:
        end = time.monotonic() + 30
        while found.process.poll() is None and time.monotonic() < end:
            for pid in children(found.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        assert found.process.poll() == 1
