"""deploy/ray on a real Ray Serve, as its files have it: ports, the repository and how many replicas are replaced.

Ray lives in an environment of its own, because it wants other packages than this repository.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from inflight_tools.common.layout import REPOSITORY
from inflight_tools.common.report import Failure
from inflight_tools.server.server import Ports

RECIPE = REPOSITORY / "deploy" / "ray"
READY_S = 120.0
END_S = 90.0


class RayServe:
    """A running `serve run`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, repository: Path) -> None:
        self.process = process
        self.port = port
        self._repository = str(repository)

    def ask(self, prompt: str, session: str = "", tokens: int = 5, model: str = "llm") -> tuple[int, dict[str, Any]]:
        """One completion."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"x-session-id": session} if session else {}
        try:
            body = json.dumps({"model": model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True})
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

    def until(self, ready: Callable[[], bool], timeout_s: float = READY_S) -> float:
        """Wait; returns how long it took. Raises `Failure`."""
        began = time.monotonic()
        while not ready():
            if self.process.poll() is not None:
                raise Failure(f"serve run ended with {self.process.returncode}.")
            if time.monotonic() > began + timeout_s:
                raise Failure(f"it did not come within {timeout_s:.0f} s.")
            time.sleep(0.25)
        return time.monotonic() - began

    def answers(self) -> bool:
        """Whether a completion comes."""
        with contextlib.suppress(OSError):
            return self.ask("ready?")[0] == 200
        return False


@contextlib.contextmanager
def serving(
    folder: Path, python: Path, repository: Path, words: Mapping[str, str], replicas: int
) -> Iterator[RayServe]:
    """`serve run deploy/ray/serve.yaml` with Ray's `python`, and `words` of the file replaced, until that many replicas
    answer. Raises `Failure`.
    """
    command = folder / "inflight"
    programs = os.pathsep.join(str(REPOSITORY / name) for name in ("python_backend", "", "scripts"))
    command.write_text(
        f'#!/bin/sh\nshift\nPYTHONPATH={programs} exec {sys.executable} {REPOSITORY}/scripts/serve.py "$@"\n',
        encoding="utf-8",
    )
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    port = Ports.free().http
    text = (RECIPE / "serve.yaml").read_text(encoding="utf-8")
    mine = {
        "port: 8080": f"port: {port}",
        "repository: model_repository": f"repository: {repository}",
        "inflight: inflight": f"inflight: {command}",
    }
    for old, new in {**mine, **words}.items():
        if old not in text:
            raise Failure(f"serve.yaml has no {old!r} to replace.")
        text = text.replace(old, new)
    config = folder / "serve.yaml"
    config.write_text(text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'gateway'}{os.pathsep}{RECIPE}"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "HOME": str(folder)}
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [python.parent / "serve", "run", config], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    running = RayServe(process, port, repository)
    try:
        running.until(running.answers)
        running.until(lambda: len(running.servers()) == replicas)
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
        stop: list[str | Path] = [python.parent / "ray", "stop", "--force"]
        subprocess.run(stop, env=environment, capture_output=True, timeout=60, check=False)
