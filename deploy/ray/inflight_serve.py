"""Inflight on Ray Serve: every replica owns a Triton of its own and answers as the gateway does.

`serve run deploy/ray/serve.yaml` starts it; README.md beside this file says what to change. Nothing here knows the
models: a replica starts `inflight serve`, waits until it is ready, and is the gateway's application before it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from inflight_gateway.http.answers import Limits
from inflight_gateway.http.front import Front
from inflight_gateway.http.keys import Keys
from inflight_gateway.triton.fleet import Fleet

READY_S = 600.0  # an engine of many gigabytes takes minutes to load
POLL_S = 0.2
ASK_S = 2.0
PORTS = ("http", "grpc", "metrics", "health")


@serve.deployment(
    max_ongoing_requests=256,  # Ray's default is 5; the model's own queue is the real limit
    health_check_period_s=2,
    health_check_timeout_s=10,
    graceful_shutdown_timeout_s=60,  # streams go on meanwhile; then the server drains
    # The same x-session-id goes to the same replica, whose prefix cache knows its conversation.
    request_router_config=RequestRouterConfig(request_router_class=ConsistentHashRouter),
)
@serve.ingress()
class InflightServer:
    """One replica."""

    def __init__(
        self, repository: str, models: tuple[str, ...] = ("llm",), inflight: str = "inflight", stop_s: float = 45.0
    ) -> None:
        """`repository`: the model repository, `models`: those of it that every replica serves; `inflight`: the command;
        `stop_s`: what its drain may take.
        """
        self._stop_s = stop_s
        self._ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
        folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"inflight-ray-{os.getpid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        ports = [word for name, port in self._ports.items() for word in (f"--{name}-port", str(port))]
        served = [word for name in models for word in ("--model", name)]
        command = [inflight, "serve", "--repository", repository, *served, *ports, "--no-gateway", "--end-with-parent"]
        self._server = subprocess.Popen(
            [*command, "--log", str(folder / "tritonserver.log")],
            env={**os.environ, "INFLIGHT_CONTROL_DIR": str(folder / "control")},  # a drain is this replica's alone
        )
        end = time.monotonic() + READY_S
        while self._asked("/ready") != 200:
            if self._server.poll() is not None:
                raise RuntimeError(f"inflight serve ended with {self._server.returncode}: see the replica's log.")
            if time.monotonic() > end:
                self._server.kill()
                raise RuntimeError(f"the model is not ready after {READY_S:.0f} s: see {folder}/tritonserver.log.")
            time.sleep(POLL_S)

    def __serve_build_asgi_app__(self) -> Front:
        """The gateway before this replica's Triton; Ray runs its lifespan."""
        tritons = Fleet([f"127.0.0.1:{self._ports['grpc']}"], [f"127.0.0.1:{self._ports['health']}"])
        return Front(tritons, Keys(None, os.environ), Limits(), page=False)

    def check_health(self) -> None:
        """Ray replaces a replica whose check raises: a Triton that is gone, or an engine that was given up.

        One that drains or whose engine restarts is not that: it comes back by itself.
        """
        if self._server.poll() is not None:
            raise RuntimeError(f"tritonserver is gone (status {self._server.returncode})")
        if self._asked("/live") == 503:
            raise RuntimeError("the server asks for a new start: its /live is 503")

    def __del__(self) -> None:
        """Drain and stop the server; Ray has taken this replica out of its round before."""
        server = getattr(self, "_server", None)
        if server is None or server.poll() is not None:
            return
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(self._stop_s)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(10)

    def _asked(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports['health']}{path}", timeout=ASK_S) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def build(arguments: dict[str, Any]) -> Any:
    """The application, with `args` of serve.yaml."""
    return InflightServer.bind(**arguments)
