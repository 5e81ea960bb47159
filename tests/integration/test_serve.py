"""serve.py ends streams before it ends the server."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import psutil
import pytest

from inflight_tools.common.layout import REPOSITORY
from inflight_tools.server.processes import is_alive
from inflight_tools.server.server import Ports
from tests.conftest import require_installation
from tests.harness.grpc_client import GrpcClient, Pending, RequestFailed
from tests.harness.repository import write_model

pytestmark = pytest.mark.server


def serve(tmp_path: Path, *options: str, gateway: bool = False) -> tuple[subprocess.Popen[str], Ports]:
    """serve.py with a simulated engine of 20 ms a token, ready."""
    require_installation()
    write_model(tmp_path / "repository", "llm", {"engine": "simulated", "engine_options": {"step_ms": 20.0}})
    ports, ready = Ports.free(), tmp_path / "ready.json"
    command = [
        *(sys.executable, REPOSITORY / "scripts" / "serve.py", "--repository", tmp_path / "repository"),
        *("--http-port", str(ports.http), "--grpc-port", str(ports.grpc), "--metrics-port", str(ports.metrics)),
        *("--health-port", str(ports.health), "--gateway-port", str(ports.gateway if gateway else 0)),
        *("--log", tmp_path / "log", "--ready-file", ready, "--end-with-parent", "--drain-notice", "0", *options),
    ]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    with ThreadPoolExecutor(1) as pool:  # its thread ends behind this: a server ends with its parent, not with a thread
        process = pool.submit(start).result()
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            assert time.monotonic() < deadline
            time.sleep(0.05)
    return process, ports


def finish(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=60)[0]
    finally:
        process.kill()


def ask_until_refused(client: GrpcClient, running: Pending) -> None:
    """A signal takes its time to arrive."""
    while running.finals == 0:
        client.generate("too late", max_tokens=4)


def test_a_stream_under_way_finishes_and_new_work_is_refused(tmp_path: Path) -> None:
    process, ports = serve(tmp_path)
    with GrpcClient(f"127.0.0.1:{ports.grpc}") as client, GrpcClient(f"127.0.0.1:{ports.grpc}") as late:
        running = client.start("a prompt", max_tokens=150, return_finish_reason=True, return_num_output_tokens=True)
        running.first()
        for _ in range(3):  # what started the server has ended: nobody has told it to stop yet
            late.generate("served", max_tokens=10)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(RequestFailed, match="draining"):
            ask_until_refused(late, running)
        running.result()
    assert running.output_tokens == 150
    assert running.finish_reason == "length"
    assert running.finals == 1
    assert process.wait(60) == 0, finish(process)


def test_what_is_not_done_in_time_ends_with_what_to_do(tmp_path: Path) -> None:
    process, ports = serve(tmp_path, "--drain-timeout", "0.5")
    with GrpcClient(f"127.0.0.1:{ports.grpc}") as client:
        running = client.start("a prompt", max_tokens=5000)
        running.first()
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        with pytest.raises(RequestFailed, match="draining; send the request to another server"):
            running.result()
        assert time.monotonic() - begin < 5
    assert process.wait(60) == 0, finish(process)


def test_a_server_that_dies_is_reported(tmp_path: Path) -> None:
    import json

    process, _ = serve(tmp_path)
    pid = json.loads((tmp_path / "ready.json").read_text())["pid"]
    subprocess.run(["kill", "-KILL", str(pid)], check=True)
    assert process.wait(60) == 3
    assert "tritonserver ended by itself with status -9" in finish(process)


def test_with_its_gateway_it_gives_notice_finishes_streams_and_leaves_nothing(tmp_path: Path) -> None:
    """A balancer in front of the gateway sees the 503 while everything is served; Triton goes last."""
    process, ports = serve(tmp_path, "--drain-notice", "1.5", gateway=True)
    url = f"http://127.0.0.1:{ports.gateway}"
    pids = {process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))}
    assert len(pids) >= 5, "serve.py, the gateway, tritonserver, the stub and the engine"

    def ready() -> int:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        assert ready() == 200
        assert [model.id for model in client.models.list()] == ["llm"]
        stream = client.completions.create(
            model="llm", prompt="a prompt", max_tokens=150, stream=True, extra_body={"ignore_eos": True}
        )
        chunks = [next(stream)]
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        while ready() == 200:
            assert time.monotonic() - began < 1.0
        late = client.completions.create(model="llm", prompt="within the notice", max_tokens=2)
        assert late.choices[0].finish_reason == "length"
        chunks += list(stream)  # 3 s: beyond the notice
        assert chunks[-1].choices[0].finish_reason == "length"
    assert process.wait(60) == 0, finish(process)
    assert [pid for pid in pids if psutil.pid_exists(pid) and is_alive(pid)] == []
