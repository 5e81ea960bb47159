"""What the Dockerfile starts and how its health is asked, taken from the file itself and run without an image.

The files lie as COPY lays them, below a folder that stands for `/`, beside the real tritonserver where an image has its
own. Only ports and the root are others; the engine is the built one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from inflight_tools.common.layout import BACKENDS, CACHE, ENGINE, REPOSITORY, SERVER
from inflight_tools.server.server import Ports
from tests.conftest import require_installation
from tests.harness.http_client import HttpClient

pytestmark = [pytest.mark.full, pytest.mark.server]

LOAD_S = 120.0
NOTICED_S = 3.0
STOP_S = 60.0
LONG = {"text_input": "Once upon a time", "max_tokens": 200, "ignore_eos": True}
LAUNCHER = """\
#!/bin/sh
export LD_LIBRARY_PATH="{cache}/lib:{server}/nvidia_pytriton.libs"
exec "{server}/pytriton/tritonserver/bin/tritonserver" "$@"
"""


def instructions(file: Path) -> Iterator[tuple[str, str]]:
    """(INSTRUCTION, its text with continuation lines joined)."""
    text = file.read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    for line in filter(None, lines.splitlines()):
        word, _, rest = line.partition(" ")
        yield word, rest.strip()


class Image:
    """The file's instructions, carried out below `root`."""

    def __init__(self, root: Path, file: Path = REPOSITORY / "Dockerfile") -> None:
        self.root, self.ports = root, Ports.free()
        self.environment = {
            "PATH": os.pathsep.join([str(root / "opt/tritonserver/bin"), str(Path(sys.executable).parent), os.defpath]),
            "HOME": str(root / "root"),
            "INFLIGHT_CONTROL_DIR": str(root / "run"),
        }
        for word, text in instructions(file):
            match word:
                case "COPY":
                    source, target = text.split()
                    self._copy(REPOSITORY / source, target)
                case "ENV":
                    name, _, value = text.partition("=")
                    self.environment[name] = os.pathsep.join(self.inside(part) for part in value.split(os.pathsep))
                case "HEALTHCHECK":
                    self.check: list[str] = json.loads(text.partition("CMD")[2])
                case "CMD":
                    self.command: list[str] = json.loads(text)

    def inside(self, path: str) -> str:
        return f"{self.root}{path}" if path.startswith("/") else path

    def _copy(self, source: Path, target: str) -> None:
        to = Path(self.inside(target))
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
        elif target.endswith("/"):
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, to)
        else:
            shutil.copy(source, to)

    def add_what_the_base_and_the_volume_bring(self) -> None:
        """A tritonserver with its Python backend; the engine."""
        server = self.root / "opt" / "tritonserver"
        (server / "bin").mkdir(parents=True)
        program = server / "bin" / "tritonserver"
        program.write_text(LAUNCHER.format(cache=CACHE, server=SERVER), encoding="utf-8")
        program.chmod(0o755)
        (server / "backends" / "python").symlink_to(BACKENDS / "python")
        (self.root / "models" / "llm" / "1").mkdir(parents=True)
        (self.root / "models" / "llm" / "1" / "engine").symlink_to(ENGINE)
        for name in ("root", "run"):
            (self.root / name).mkdir(mode=0o700)

    def start(self) -> subprocess.Popen[bytes]:
        ports = {"--http-port": self.ports.http, "--grpc-port": self.ports.grpc, "--metrics-port": self.ports.metrics}
        ports["--health-port"] = self.ports.health
        ports["--gateway-port"] = self.ports.gateway
        command = [self.inside(word) for word in self.command]
        command += [str(word) for pair in ports.items() for word in pair]
        with (self.root / "output").open("wb") as output:
            return subprocess.Popen(
                command, cwd=self.root, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def is_healthy(self) -> bool:
        """What the health check's command says."""
        assert ":8003/" in self.check[-1]  # the port of health, by default
        check = [word.replace(":8003/", f":{self.ports.health}/") for word in self.check]
        done = subprocess.run(check, env=self.environment, stderr=subprocess.DEVNULL, timeout=5.0, check=False)
        return done.returncode == 0

    def becomes(self, healthy: bool, process: subprocess.Popen[bytes], within_s: float) -> None:
        give_up = time.monotonic() + within_s
        while self.is_healthy() != healthy:
            assert process.poll() is None, self.output()
            assert time.monotonic() < give_up, self.output()
            time.sleep(0.1)

    def output(self) -> str:
        return (self.root / "output").read_text(encoding="utf-8", errors="replace")[-4000:]


def test_the_images_command_serves_is_healthy_and_drains_on_sigterm(tmp_path: Path) -> None:
    require_installation()
    image = Image(tmp_path)
    image.add_what_the_base_and_the_volume_bring()
    process = image.start()
    try:
        assert not image.is_healthy()
        image.becomes(True, process, LOAD_S)
        below = [each.cmdline() for each in psutil.Process(process.pid).children()]
        folder = tmp_path / "opt" / "tritonserver" / "backends"
        assert any(f"--backend-directory={folder}" in words for words in below), below
        listed = HttpClient(f"127.0.0.1:{image.ports.gateway}").call("GET", "/v1/models")
        assert (listed[0], [model["id"] for model in json.loads(listed[1])["data"]]) == (200, ["llm"])
        client = HttpClient(f"127.0.0.1:{image.ports.http}")
        events: list[dict[str, Any]] = []
        begun = threading.Event()

        def read() -> None:
            for event in client.generate_stream(**LONG):
                events.append(event)
                begun.set()

        stream = threading.Thread(target=read)
        stream.start()
        assert begun.wait(30.0)
        process.send_signal(signal.SIGTERM)
        image.becomes(False, process, NOTICED_S)
        assert client.generate(text_input="Hello", max_tokens=2)[0] == 200  # it gives notice, and serves on
        stream.join(STOP_S)
        assert process.wait(STOP_S) == 0, image.output()
    finally:
        process.kill()
    assert "error" not in events[-1], events[-1]
    assert "".join(event["text_output"] for event in events)
