"""The manifests of deploy/kubernetes, run: commands, probes and hooks out of the file itself, against a real server
with a real model, and clients that go on sending until endpoints have heard of the deletion.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from inflight_tools.common.layout import CACHE, REPOSITORY
from inflight_tools.server.server import Ports
from tests.conftest import require_installation
from tests.harness.kubernetes import FOLDER, kustomize, pick
from tests.harness.pod import Pod, can_sandbox, copy_repository, lay_out
from tests.reliability.conftest import Report

pytestmark = [pytest.mark.full, pytest.mark.server]

IMAGE = REPOSITORY / "deploy" / "cpu.Dockerfile"
HEARD_S = 3.0  # until nobody sends requests to a pod that is being deleted
SHORT, LONG = 8, 250
LONG_BESIDE_ANOTHER = 100  # two engines share the processors, and KServe's grace is short


@pytest.fixture
def root() -> Iterator[Path]:
    """Where the image lies: a folder that other users can enter, and not below /tmp, which is a volume."""
    require_installation()
    folder = Path(tempfile.mkdtemp(prefix="pod-", dir=CACHE))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def free_ports() -> dict[int, int]:
    one, more = Ports.free(), Ports.free()
    return {8000: one.http, 8001: one.grpc, 8002: one.metrics, 8003: one.health, 8080: more.http}


class Traffic:
    """Requests to a pod over HTTP; each is whole or lost."""

    def __init__(self, openai: int | None, triton: int, models: tuple[str, ...] = ("llm",)) -> None:
        self._openai, self._triton, self._models = openai, triton, models
        self._long = LONG if len(models) == 1 else LONG_BESIDE_ANOTHER
        self.ends: Counter[str] = Counter()
        self.lost: list[str] = []
        self.sent_at: list[float] = []
        self.over = threading.Event()

    def one(self, kind: str, tokens: int) -> None:
        self.sent_at.append(time.monotonic())
        body: dict[str, Any] = {"max_tokens": tokens, "ignore_eos": True, "stream": True}
        model = self._models[len(self.sent_at) % len(self._models)]
        if kind == "openai":
            port, path = self._openai, "/v1/completions"
            body |= {"model": model, "prompt": "Once upon a time"}
        else:
            port, path = self._triton, f"/v2/models/{model}/generate_stream"
            body |= {"text_input": "Once upon a time", "return_finish_reason": True}
        assert port is not None
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.closing(connection):
            try:
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                text, status = answer.read().decode(), answer.status
            except (OSError, http.client.HTTPException) as error:
                text, status = repr(error), 0
        done = '"length"' in text and '"error"' not in text and (kind != "openai" or "data: [DONE]" in text)
        self.ends[f"{kind}, {model}"] += 1
        if status != 200 or not done:
            self.lost.append(f"{kind}, {tokens} tokens: {status} {text[-300:]}")

    def run(self, kinds: list[str], deleted: threading.Event) -> list[threading.Thread]:
        """Clients of short requests, and two long ones of each kind that are under way at the deletion."""

        def client(kind: str) -> None:
            while not self.over.is_set():
                self.one(kind, SHORT)

        def long(kind: str) -> None:
            while not deleted.is_set():
                self.one(kind, self._long)

        threads = [threading.Thread(target=what, args=(kind,)) for kind in kinds for what in (client, client, long)]
        for thread in threads:
            thread.start()
        return threads


def start_load_delete(pod: Pod, traffic: Traffic, kinds: list[str]) -> tuple[dict[str, float], dict[str, int], float]:
    """Startup, ready, load, deletion under load: startup times, exit statuses, seconds that the deletion took."""
    took = pod.start()
    pod.wait_ready(30.0)
    deleted = threading.Event()
    threads = traffic.run(kinds, deleted)
    time.sleep(4.0)
    statuses: dict[str, int] = {}
    began = time.monotonic()
    deletion = threading.Thread(target=lambda: statuses.update(pod.delete()))
    deletion.start()
    deleted.set()
    time.sleep(HEARD_S)
    traffic.over.set()
    for thread in threads:
        thread.join(60.0)
    deletion.join(120.0)
    seconds = time.monotonic() - began
    assert not deletion.is_alive()
    assert any(at > began for at in traffic.sent_at), "nothing was sent to a pod that leaves"
    return took, statuses, seconds


def check(pod: Pod, traffic: Traffic, statuses: dict[str, int]) -> None:
    said = "\n".join(each.said() for each in (*pod.sidecars, *pod.containers))
    assert traffic.lost == [], said
    assert set(statuses.values()) == {0}, (statuses, said)
    assert pod.endangered == []


def test_the_cpu_overlay_starts_serves_and_is_deleted_under_load(root: Path, report: Report) -> None:
    documents = kustomize(FOLDER / "overlays" / "cpu")
    image = lay_out(root, IMAGE, pick(documents, "ConfigMap")["data"]["config.pbtxt"])
    ports = free_ports()
    pod = Pod(pick(documents, "Deployment")["spec"]["template"]["spec"], image, ports)
    traffic = Traffic(ports[8080], ports[8000])
    try:
        took, statuses, seconds = start_load_delete(pod, traffic, ["openai", "triton"])
    finally:
        pod.kill()
    check(pod, traffic, statuses)
    (server,) = pod.containers
    logs = list((root / "volumes" / "tmp" / "cache").rglob("tritonserver-*.log"))
    assert len(logs) == 1, "the log lies elsewhere than in the volume"
    written = logs[0].read_text(encoding="utf-8", errors="replace")
    assert re.search(r'"status": ?"ok"', written), f"no access log in {server.said()}"
    held = "as another user, on a read-only root" if can_sandbox() else "as this user, free to write"
    report(
        f"{held}: gateway started after {took['gateway']:.1f} s, server after {took['server']:.1f} s; 0 of "
        f"{sum(traffic.ends.values())} requests lost ({dict(traffic.ends)}); deleted in {seconds:.1f} s, all exits 0"
    )


def test_kserves_runtime_does_so_too_with_two_models(root: Path, report: Report) -> None:
    runtime = yaml.safe_load((FOLDER / "kserve" / "servingruntime.yaml").read_text("utf-8"))
    model = (FOLDER / "base" / "config.pbtxt").read_text("utf-8")
    image = lay_out(root, IMAGE, model)
    copy_repository(root, "/mnt/models", "second")
    ports = free_ports()
    pod = Pod(runtime["spec"], image, ports)
    traffic = Traffic(None, ports[8080], ("llm", "second"))
    try:
        took, statuses, seconds = start_load_delete(pod, traffic, ["triton"])
    finally:
        pod.kill()
    check(pod, traffic, statuses)
    assert all(traffic.ends[f"triton, {model}"] > 0 for model in ("llm", "second")), traffic.ends
    report(f"started after {took['kserve-container']:.1f} s; 0 lost of {dict(traffic.ends)}; {seconds:.1f} s")
