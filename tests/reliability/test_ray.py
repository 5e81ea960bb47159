"""deploy/ray on a real Ray Serve: replicas that own a Triton each, one of them killed, more of them under load.

Ray gets an environment of its own (half a gigabyte), because it wants other packages than this repository.
"""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.ray_serve import RayServe, serving
from bench.simulated_model import write_model
from inflight_tools.common.layout import ENGINE
from tests.conftest import require_installation
from tests.reliability.conftest import Report

pytestmark = [pytest.mark.server, pytest.mark.full]

PACKAGES = ("ray[serve]==2.60.0", "tritonclient[grpc]==2.73.0", "msgspec==0.22.0")
PROTOBUF = "protobuf>=7.35.1"  # Ray's generated code wants it, tritonclient's package knows nothing of it yet
MODELS = ("llm", "second")


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServe]:
    require_installation()
    folder = tmp_path_factory.mktemp("ray")
    python = Path(os.environ.get("INFLIGHT_RAY_PYTHON") or _environment(folder / "venv"))
    repository = folder / "repository"
    for name in MODELS:
        write_model(repository, ENGINE, {"step_ms": 20, "max_running": 16}, {}, name)
    words = {
        "models: [llm]": f"models: [{', '.join(MODELS)}]",
        "num_cpus: 1}": "num_cpus: 0.1}",  # three replicas fit on any machine
        "min_replicas: 1": "min_replicas: 2",
        "max_replicas: 4": "max_replicas: 3",
        "target_ongoing_requests: 32": "target_ongoing_requests: 8",
        "upscale_delay_s: 10": "upscale_delay_s: 2",
        "downscale_delay_s: 600": "downscale_delay_s: 5",
    }
    with serving(folder, python, repository, words, 2) as running:
        yield running
    assert not running.servers(), "tritonservers are left"


def _environment(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    pip = [folder / "bin" / "pip", "install", "--quiet"]
    subprocess.run([*pip, *PACKAGES], check=True, timeout=900)
    subprocess.run([*pip, "--upgrade", PROTOBUF], check=True, timeout=300)
    return folder / "bin" / "python"


def test_a_session_keeps_its_replica(ray: RayServe, report: Report) -> None:
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


def test_each_model_is_found_by_its_name(ray: RayServe) -> None:
    for model in MODELS:
        status, answer = ray.ask("a word", tokens=3, model=model)
        assert (status, answer["model"], answer["usage"]["completion_tokens"]) == (200, model, 3)
    assert ray.ask("a word", model="third")[0] == 404


def test_a_replica_whose_triton_is_killed_is_replaced(ray: RayServe, report: Report) -> None:
    before = {process.pid for process in ray.servers()}
    os.kill(min(before), signal.SIGKILL)
    took = ray.until(lambda: len({each.pid for each in ray.servers()} - before) == 1)
    ray.until(lambda: all(ray.answers() for _ in range(6)))
    report(f"Ray Serve: a killed Triton's replica was replaced after {took:.0f} s")


def test_more_replicas_come_under_load_and_go_again(ray: RayServe, report: Report) -> None:
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
