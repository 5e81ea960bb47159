"""The real gateway in a process of its own, before whatever speaks gRPC at an address."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from inflight_tools.common.layout import REPOSITORY
from inflight_tools.server.server import Ports

START_S = 20.0
END_S = 20.0


class Gateway:
    """A running gateway."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """One request, read whole: status, headers, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, data, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def wait_ready(self, timeout_s: float = START_S) -> None:
        """Until it is ready. Raises TimeoutError."""
        self._wait("/ready", timeout_s)

    def wait_alive(self, timeout_s: float = START_S) -> None:
        """Until it answers, whether its Triton does or not. Raises TimeoutError."""
        self._wait("/live", timeout_s)

    def _wait(self, path: str, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if self.call("GET", path)[0] == 200:
                    return
            time.sleep(0.05)
        raise TimeoutError(f"the gateway's {path} does not answer 200")

    def terminate(self, number: int = signal.SIGTERM) -> None:
        """Ask it to end."""
        self.process.send_signal(number)


@contextlib.contextmanager
def running(triton: str, *arguments: str, keys: str = "") -> Iterator[Gateway]:
    """A gateway before `triton` (host:port)."""
    port = Ports.free().http
    environment = dict(os.environ, INFLIGHT_GATEWAY_KEYS=keys)
    environment["PYTHONPATH"] = str(REPOSITORY / "gateway")
    process = subprocess.Popen(
        [sys.executable, "-m", "inflight_gateway", "--triton", triton, "--port", str(port), *arguments],
        env=environment,
    )
    try:
        yield Gateway(process, port)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(END_S)
            raise
