"""deploy/ray on a real Ray Serve: replicas that own a Triton each, one of them killed, more of them under load.

Ray gets an environment of its own (half a gigabyte), because it wants other packages than this repository.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.simulated_model import write_model
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.server.server import Ports
from tests.conftest import require_installation
from tests.reliability.conftest import Report

pytestmark = [pytest.mark.server, pytest.mark.full]

PACKAGES = ("ray[serve]==2.60.0", "tritonclient[grpc]==2.73.0", "msgspec==0.22.0")
PROTOBUF = "protobuf>=7.35.1"  # Ray's generated code wants it, tritonclient's package knows nothing of it yet
RECIPE = REPOSITORY / "deploy" / "ray"
READY_S = 120.0


class Ray:
    """A running `serve run`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, repository: Path) -> None:
        self.process = process
        self.port = port
        self._repository = str(repository)

    def ask(self, prompt: str, session: str = "", tokens: int = 5) -> tuple[int, dict[str, Any]]:
        """One completion."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"x-session-id": session} if session else {}
        try:
            body = json.dumps({"model": "llm", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True})
            connection.request("POST", "/v1/completions", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, json.loads(content) if answer.status == 200 else {"said": content.decode()}
        finally:
            connection.close()

    def servers(self) -> list[psutil.Process]:
        """The tritonservers of the replicas."""
        found = []
        for process in psutil.process_iter(["name", "cmdline"]):
            if process.info["name"] == "tritonserver" and self._repository in " ".join(process.info["cmdline"] or ()):
                found.append(process)
        return found

    def until(self, ready: Any, timeout_s: float = READY_S) -> float:
        """Wait; returns how long it took."""
        began = time.monotonic()
        while not ready():
            assert self.process.poll() is None
            assert time.monotonic() < began + timeout_s, "it did not come"
            time.sleep(0.25)
        return time.monotonic() - began

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("ready?")[0] == 200
        return False


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    require_installation()
    folder = tmp_path_factory.mktemp("ray")
    python = Path(os.environ.get("INFLIGHT_RAY_PYTHON") or _environment(folder / "venv"))
    command = folder / "inflight"
    programs = os.pathsep.join(str(REPOSITORY / name) for name in ("python_backend", "", "scripts"))
    command.write_text(
        f'#!/bin/sh\nshift\nPYTHONPATH={programs} exec {sys.executable} {REPOSITORY}/scripts/serve.py "$@"\n',
        encoding="utf-8",
    )
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    repository, port = folder / "repository", Ports.free().http
    write_model(repository, ENGINE, {"step_ms": 20, "max_running": 16}, {})
    text = (RECIPE / "serve.yaml").read_text(encoding="utf-8")
    for old, new in (
        ("port: 8080", f"port: {port}"),
        ("repository: model_repository", f"repository: {repository}"),
        ("inflight: inflight", f"inflight: {command}"),
        ("min_replicas: 1", "min_replicas: 2"),
        ("max_replicas: 4", "max_replicas: 3"),
        ("target_ongoing_requests: 32", "target_ongoing_requests: 8"),
        ("upscale_delay_s: 10", "upscale_delay_s: 2"),
        ("downscale_delay_s: 600", "downscale_delay_s: 5"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    config = folder / "serve.yaml"
    config.write_text(text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'gateway'}{os.pathsep}{RECIPE}"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "HOME": str(folder)}
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [python.parent / "serve", "run", config], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    running = Ray(process, port, repository)
    try:
        running.until(running.answers)
        running.until(lambda: len(running.servers()) == 2)
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
        subprocess.run([python.parent / "ray", "stop", "--force"], env=environment, capture_output=True, timeout=60)
        assert not running.servers(), "tritonservers are left"


def _environment(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    pip = [folder / "bin" / "pip", "install", "--quiet"]
    subprocess.run([*pip, *PACKAGES], check=True, timeout=900)
    subprocess.run([*pip, "--upgrade", PROTOBUF], check=True, timeout=300)
    return folder / "bin" / "python"


def test_a_session_keeps_its_replica(ray: Ray, report: Report) -> None:
    """Seen by its prefix cache: the second turn of a conversation is not computed again."""
    time.sleep(3)  # both replicas are in the router's ring
    again = 0
    for number in range(6):
        prompt = f"{number} " + "a long story of the sea and of the wind " * 20
        assert ray.ask(prompt, f"session-{number}")[0] == 200
        status, answer = ray.ask(prompt + "and then", f"session-{number}")
        assert status == 200
        again += answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 100
    assert again == 6
    report("Ray Serve: 6 of 6 sessions found their replica's cache")


def test_a_replica_whose_triton_is_killed_is_replaced(ray: Ray, report: Report) -> None:
    before = {process.pid for process in ray.servers()}
    os.kill(min(before), signal.SIGKILL)
    took = ray.until(lambda: len({each.pid for each in ray.servers()} - before) == 1)
    ray.until(lambda: all(ray.answers() for _ in range(6)))
    report(f"Ray Serve: a killed Triton's replica was replaced after {took:.0f} s")


def test_more_replicas_come_under_load_and_go_again(ray: Ray, report: Report) -> None:
    enough = threading.Event()

    def load(number: int) -> list[tuple[int, dict[str, Any]]]:
        answers = []
        while not enough.is_set():
            answers.append(ray.ask(f"load {number} {len(answers)}", tokens=250))
        return answers

    with concurrent.futures.ThreadPoolExecutor(48) as pool:
        asked = [pool.submit(load, number) for number in range(48)]
        try:
            up = ray.until(lambda: len(ray.servers()) == 3)
        finally:
            enough.set()
        answers = [answer for future in asked for answer in future.result()]
    assert {status for status, _ in answers} == {200}, [answer for answer in answers if answer[0] != 200][:3]
    assert {answer["usage"]["completion_tokens"] for _, answer in answers} == {250}
    down = ray.until(lambda: len(ray.servers()) == 2)
    count = len(answers)
    report(f"Ray Serve: a third replica after {up:.0f} s of load, gone {down:.0f} s after it; {count} of {count} whole")
