"""Inflight as one of the peers: a tritonserver of its own with one engine, asked over gRPC."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.arms import cpu_seconds, start_order
from bench.peer_client import Question, TritonTransport, drive
from bench.peer_servers import resident_bytes
from inflight_tools.common.layout import BACKEND_SOURCE, CACHE, REPOSITORY
from inflight_tools.common.report import Failure
from inflight_tools.load.perf_analyzer import Load
from inflight_tools.load.profile_export import Request
from inflight_tools.server.server import Server, ServerConfig

FOLDER = CACHE / "bench"
MODEL = "llm"
_READY_S = 400.0  # vLLM compiles first


class InflightPeer:
    """See `bench.peer_servers.Peer`."""

    most_in_flight = 1 << 20

    def __init__(self, name: str, weights: str, engine: Path, parameters: Mapping[str, Any] | None = None) -> None:
        """`engine`: its directory; `parameters`: those of the model's config.pbtxt."""
        self.name = name
        self.weights = weights
        self.engine = engine
        self._parameters = dict(parameters or {})
        repository = write_repository(FOLDER / "repositories" / name.replace(" ", "-"), engine, self._parameters)
        self.server = Server(ServerConfig(repository=repository, models=(MODEL,)))
        self._pids: list[int] = []

    def start(self) -> None:
        """See `Peer`."""
        self.server.start()
        self.server.wait_ready(_READY_S)
        self._pids = sorted(self.server.processes(), key=start_order)

    def stop(self) -> None:
        """See `Peer`."""
        self.resume()
        self.server.stop()

    def resume(self) -> None:
        """Engine first, server last, so that nobody waits for somebody who is still stopped."""
        self._signal(signal.SIGCONT, self._pids[::-1])

    def pause(self) -> None:
        """Server first."""
        self._signal(signal.SIGSTOP, self._pids)

    @staticmethod
    def _signal(number: int, pids: Sequence[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # an engine that died has its reason in the server's log
                os.kill(pid, number)

    def cpu_s(self) -> float:
        """See `Peer`."""
        return sum(map(cpu_seconds, self._pids))

    def memory(self) -> int:
        """See `Peer`."""
        return sum(map(resident_bytes, self._pids))

    def drive(self, questions: Sequence[Question], load: Load, seed: str) -> list[Request]:
        """See `Peer`."""
        return drive(TritonTransport(self.server.grpc_url, MODEL), questions, load, seed)

    def describe(self) -> dict[str, str]:
        """See `Peer`."""
        about: dict[str, str] = {}
        if (self.engine / "engine.json").exists():  # a checkpoint as it comes has none
            manifest = json.loads((self.engine / "engine.json").read_text(encoding="utf-8"))
            about = {
                "version": f"openvino {manifest['requires']['packages']['openvino']}",
                "weights": manifest["quantization"]["algorithm"],
                "kv_cache": manifest["quantization"]["kv_cache"],
            }
        asked = {name: value for name, value in self._parameters.items() if name != "engine_python"}  # a path of here
        return {**about, "parameters": json.dumps(asked), "interface": "Triton's ModelStreamInfer (gRPC)"}


def write_repository(folder: Path, engine: Path, parameters: Mapping[str, Any]) -> Path:
    """A fresh model repository with one model over `engine`."""
    shutil.rmtree(folder, ignore_errors=True)
    version = folder / MODEL / "1"
    version.mkdir(parents=True)
    (version / "engine").symlink_to(engine.resolve())
    text = 'backend: "inflight"\nmax_batch_size: 0\nmodel_transaction_policy { decoupled: true }\n'
    for key, value in parameters.items():
        written = value if isinstance(value, str) else json.dumps(value)
        text += f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(written)} }} }}\n"
    (folder / MODEL / "config.pbtxt").write_text(text, encoding="utf-8")
    return folder


def built_engine(checkpoint: Path, recipe: str) -> Path:
    """The engine of `checkpoint` for OpenVINO with this recipe, built and verified once. Raises `Failure`."""
    engine = FOLDER / "engines" / checkpoint.name / recipe
    if (engine / "engine.json").exists():
        return engine
    command = [sys.executable, "-m", "build_engine", "build", str(checkpoint), "--target", "openvino"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(BACKEND_SOURCE), str(REPOSITORY)))}
    done = subprocess.run(
        [*command, "--quantization", recipe, "--output", str(engine)], env=environment, check=False, cwd=REPOSITORY
    )
    if done.returncode:
        raise Failure(f"the {recipe} engine could not be built: run {' '.join(command[1:])} by hand.")
    return engine
