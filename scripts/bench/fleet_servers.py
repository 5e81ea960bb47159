"""One server of a fleet: `inflight serve` with a gateway before it, and control sockets of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.recipes import Place
from bench.simulated_model import write_model
from inflight_tools.common.layout import REPOSITORY
from inflight_tools.common.report import Failure
from inflight_tools.server.server import Ports

READY_S = 90.0
STOP_S = 40.0
NOTICE_MS = 2000  # of a drain: a balancer needs two checks of 0.5 s to notice, and a moment
_PROCESS = re.compile(r"-\d+$")  # what the commands write behind a model's name
PROGRAMS = os.pathsep.join(str(REPOSITORY / name) for name in ("python_backend", "", "scripts", "gateway"))


class FleetServer:
    """Everything of it lies in `folder`. Not started yet."""

    def __init__(
        self,
        folder: Path,
        engine: Path,
        options: Mapping[str, Any] | None,
        parameters: Mapping[str, str] | None = None,
        gateway: bool = False,
        models: Sequence[str] = ("llm",),
    ) -> None:
        """`engine` is an engine directory, `options` the simulated engine's (None: OpenVINO), `parameters` further; all
        of `models` have them.
        """
        self.folder = folder
        self.ports = Ports.free()
        self.gateway_port = self.ports.gateway if gateway else 0
        self.environment = {"INFLIGHT_CONTROL_DIR": str(folder / "control"), "PYTHONPATH": PROGRAMS}
        given = {"drain_notice_ms": str(NOTICE_MS), **(parameters or {})}
        self.models = tuple(models)
        for name in self.models:
            write_model(folder / "repository", engine, options, given, name)
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def place(self) -> Place:
        """For a recipe."""
        return Place(self.ports, self.gateway_port)

    def start(self, *command: str | Path) -> subprocess.Popen[bytes]:
        """A Python program of this server's, which `stop` ends."""
        with (self.folder / "output").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **self.environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return process

    def serve(self) -> None:
        """`inflight serve`, which has its port of health and the gateway by itself."""
        numbers = dataclasses.asdict(self.ports) | {"gateway": self.gateway_port}
        ports = [word for name, port in numbers.items() for word in (f"--{name}-port", str(port))]
        words: list[str | Path] = [REPOSITORY / "scripts" / "serve.py", "--repository", self.folder / "repository"]
        words += [word for name in self.models for word in ("--model", name)]
        self.start(*words, *ports, "--log", self.folder / "tritonserver.log", "--end-with-parent")

    def command(self, *words: str) -> dict[str, Any]:
        """`python -m inflight.control …`, as a preStop hook or an operator has it: what the first model answers.

        Raises `Failure`.
        """
        return self.answers(*words)[self.models[0]]

    def answers(self, *words: str) -> dict[str, dict[str, Any]]:
        """The same of every model, by its name. Raises `Failure`."""
        done = subprocess.run(
            [sys.executable, "-m", "inflight.control", *words],
            env={**os.environ, **self.environment},
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise Failure(f"control {' '.join(words)}: {done.stderr.strip()}")
        found = [json.loads(line) for line in done.stdout.splitlines()]
        return {_PROCESS.sub("", answer["model"]): answer for answer in found}

    def engine_pid(self, model: str = "") -> int:
        """Of the process of a model's engine, the first model's unless told; 0 while it has none."""
        return int(self.answers("status")[model or self.models[0]]["engine_pid"])

    def gateway_pid(self) -> int:
        """Of the gateway that the server has started. Raises `Failure`."""
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                if "inflight_gateway" in process.cmdline():
                    return int(process.pid)
        raise Failure("the server has no gateway now.")

    def family(self) -> list[psutil.Process]:
        """Every process of it that runs."""
        found = []
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                top = psutil.Process(process.pid)
                found += [top, *top.children(recursive=True)]
        return found

    def health(self, path: str = "/ready") -> int:
        """The status that the server's port of health answers; 0: nobody does."""
        return _status(self.ports.health, path)

    def is_ready(self) -> bool:
        """Server and gateway."""
        return self.health() == 200 and (not self.gateway_port or _status(self.gateway_port, "/ready") == 200)

    def wait_ready(self) -> None:
        """Until everything of it is. Raises `Failure`."""
        give_up = time.monotonic() + READY_S
        while not self.is_ready():
            if time.monotonic() > give_up or any(process.poll() is not None for process in self.processes):
                said = (self.folder / "output").read_text(encoding="utf-8", errors="replace")
                raise Failure(f"a server of the fleet does not become ready: {said[-2000:]}")
            time.sleep(0.05)

    def leave(self) -> list[int]:
        """SIGTERM to server and gateway, as a pod gets it; their exit statuses."""
        for process in self.processes:
            process.terminate()
        found = [process.wait(STOP_S) for process in self.processes]
        self.processes.clear()
        return found

    def kill(self) -> None:
        """SIGKILL to the tritonserver and to everything that watches it."""
        _tritonserver(self.processes[0].pid).kill()
        self.stop()

    def stop(self) -> None:
        """End what runs, soon."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self.processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_S)
        self.processes.clear()


def _tritonserver(pid: int) -> psutil.Process:
    """What `inflight serve` of that process watches. Raises `Failure`.

    By every process's parent: the kernel's own list of children may lack one while another ends.
    """
    for process in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):
            if process.name() == "tritonserver":
                return process
    raise Failure("the server has no tritonserver now.")


def _status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()
