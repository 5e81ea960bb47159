"""The engine process dies: every request ends in UNAVAILABLE at once, and service goes on with a new one.

More of this, and what else may befall an engine, is in tests/reliability.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from build_engine.output import OutputDirectory
from inflight import manifest
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.server.server import Server, ServerConfig
from tests.harness.grpc_client import GrpcClient, Pending, RequestFailed
from tests.harness.http_client import HttpClient
from tests.harness.repository import write_model
from tests.unit.machines.tokenizer_kinds import write_folder

pytestmark = pytest.mark.server

ENDLESS = {"max_tokens": 6000, "ignore_eos": True}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that need no real model: `four` has four places, `quick` as many as it likes, and
    `again` an engine directory of its own.
    """
    root = tmp_path_factory.mktemp("loss")
    slow = {"engine": "simulated", "max_restarts": 100, "engine_options": {"step_ms": 20.0}}
    write_model(root / "models", "four", {**slow, "max_running": 4})
    write_model(root / "models", "quick", {**slow, "engine_options": {"step_ms": 5.0}})
    shutil.copytree(ENGINE, root / "engine", copy_function=os.link)
    write_model(root / "models", "again", {"engine": "simulated"}, engine_dir=root / "engine")
    log = root / "tritonserver.log"
    config = ServerConfig(repository=root / "models", models=("four", "quick", "again"), log=log, drain_timeout_s=0.0)
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
    while len(set(simulated.engine_pids()) - {pid}) < 3 and time.monotonic() < give_up:
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


def test_an_engine_built_over_a_served_one_is_never_mixed_with_it(simulated: Server) -> None:
    """The old engine goes on; when it is lost, the new one is not started with the old one's tokenizer."""
    folder = (simulated.config.repository / "again/1/engine").resolve()
    assert manifest.is_served(folder)
    with GrpcClient(simulated.grpc_url, "again") as client:
        values = {"stream": False, "max_tokens": 4}
        before = client.start("The capital of France is", **values).result().text
        with OutputDirectory(folder, force=True) as out:
            write_folder(out.path, "byte_level")
            described = manifest.read(folder)
            files = manifest.list_files(out.path)
            manifest.write(out.path, msgspec.structs.replace(described, files=files))
            out.commit()
        assert client.start("The capital of France is", **values).result().text == before
        pid = engine_of(simulated, "again")
        os.kill(pid, signal.SIGKILL)
        give_up = time.monotonic() + 30.0
        refused = ""
        while "was built again" not in refused and time.monotonic() < give_up:
            refused = _error(client.start("The capital of France is", **values)) or "answered"
            assert refused != "answered"
            time.sleep(0.05)
        assert refused.endswith("(it was built again); unload and load the model, or restart the server")
    assert not psutil.pid_exists(pid)


@pytest.mark.full
def test_a_real_build_over_the_served_real_model(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """The builder says that it is served; OpenVINO's mapped weights stay; no answer is of two models; unload and load
    brings the new one.
    """
    from inflight_tools.common.tiny_models import write_checkpoint

    checkpoint = write_checkpoint(tmp_path / "tiny")
    shutil.copytree(ENGINE, tmp_path / "engine", copy_function=os.link)
    server = make_server(models={"llm": {"engine_dir": str(tmp_path / "engine")}}, engine="openvino")
    values = {"stream": False, "max_tokens": 12}
    command = [sys.executable, "-m", "build_engine", "build", str(checkpoint), "--target", "openvino", "--no-verify"]
    command += ["--quantization", "none", "--no-cache", "--force", "--output", str(tmp_path / "engine")]
    path = {"PYTHONPATH": os.pathsep.join((str(REPOSITORY / "python_backend"), str(REPOSITORY)))}
    with GrpcClient(server.grpc_url) as client:
        before = client.start("Water boils at", **values).result().text
        done = subprocess.run(
            command, env={**os.environ, **path}, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr
        assert f"warning: a running server serves {tmp_path / 'engine'}" in done.stderr
        assert client.start("Water boils at", **values).result().text == before
        os.kill(server.engine_pids()[0], signal.SIGKILL)
        give_up = time.monotonic() + 30.0
        refused = ""
        while "was built again" not in refused and time.monotonic() < give_up:
            refused = _error(client.start("Water boils at", **values)) or "answered"
            assert refused != "answered"
            time.sleep(0.05)
        http = HttpClient(server.http_url)
        for what in ("unload", "load"):
            assert http.call("POST", f"/v2/repository/models/llm/{what}", b"{}")[0] == 200
        give_up = time.monotonic() + 60.0
        while (refused := _error(client.start("Water boils at", **values)) or "") and time.monotonic() < give_up:
            time.sleep(0.2)
        assert refused == "", "the new engine with its own tokenizer"
        assert client.start("Water boils at", **values).result().text != before
