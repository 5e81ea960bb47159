"""The gateway beside a server: started with it, started again when it ends by itself, and gone before Triton is."""

from __future__ import annotations

import http.client
import importlib.machinery
import importlib.util
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from inflight_tools.server.children import start_child

PACKAGES = (
    "inflight_gateway",
    "uvicorn",
    "httptools",
    "uvloop",
    "msgspec",
    "grpc",
    "tritonclient",
    "prometheus_client",
)
FOLDER = "INFLIGHT_GATEWAY_PACKAGES"  # environment: a folder of packages that the gateway's process alone sees
RESTARTS = 5  # in a row; one that ran for HEALTHY_S begins a new row
HEALTHY_S = 60.0
FIRST_PAUSE_S = 0.5  # before it is started again; twice as long each time
STARTING_S = 2.0
END_S = 2.5  # beyond its notice and its streams' time
KILL_S = 3.0
_POLL_S = 0.05
# Its certificate bears the name that clients know; we ask the process that we started, on this machine.
_OURS = ssl.create_default_context()
_OURS.check_hostname, _OURS.verify_mode = False, ssl.CERT_NONE


def lacking() -> str | None:
    """The sentence about a package that the gateway needs and that is not installed; None: all are here."""
    folder = os.environ.get(FOLDER)
    for name in PACKAGES:
        if folder and importlib.machinery.PathFinder.find_spec(name, [folder]) is not None:
            continue
        if importlib.util.find_spec(name) is None:
            return (
                f'the gateway needs the package {name}, which {sys.executable} lacks: pip install "inflight[gateway]"'
            )
    return None


class GatewayProcess:
    """One gateway in a process of its own, which dies with the thread that started it. Not for several threads."""

    def __init__(
        self, url: str, arguments: Sequence[str], log: Path, say: Callable[[str], None], *, drain_s: float
    ) -> None:
        """`url`: where it listens, for questions of ours; `arguments`: those of `inflight gateway`; `drain_s`: notice
        and streams together. Nothing is started yet.
        """
        self.url = url
        self._arguments = tuple(arguments)
        self._log = log
        self._say = say
        self._drain_s = drain_s
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._was_ready = False
        self._again: float | None = None  # when it is to be started again
        self._restarts = 0
        self._give_up: float | None = None  # set when it was told to end

    def start(self) -> None:
        """Start it."""
        spec = importlib.util.find_spec("inflight_gateway")
        if spec is None or spec.origin is None:
            raise RuntimeError("lacking() is asked first")
        home = Path(spec.origin).parent.parent
        path = os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH"))))
        with self._log.open("ab") as log:
            self._process = start_child(
                lambda bind: subprocess.Popen(
                    [sys.executable, "-m", "inflight_gateway", *self._arguments],
                    cwd=home,  # where nothing lies that could be taken for a package that it imports
                    env={**os.environ, "PYTHONPATH": path},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # the terminal's Ctrl-C reaches us alone
                    preexec_fn=bind,
                )
            )
        self._started, self._again = time.monotonic(), None

    @property
    def pid(self) -> int | None:
        """Its process id, None where it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def given_up(self) -> bool:
        """Whether it has ended and is not started again."""
        return self._process is not None and self._process.poll() is not None and self._restarts > RESTARTS

    def keep_alive(self) -> None:
        """Start it again when it has ended by itself, after a pause; to be called often."""
        if self._process is None or self._give_up is not None or self.given_up:
            return
        status = self._process.poll()
        if status is None:
            return
        now = time.monotonic()
        if self._again is None:
            if now - self._started > HEALTHY_S:
                self._restarts = 0
            self._restarts += 1
            what = f"the gateway ended by itself with status {status}: see {self._log}"
            if self._restarts > RESTARTS:
                self._say(
                    f"error: {what}; it was started {RESTARTS} times again and is not started once more: Triton serves "
                    "on, and `inflight gateway` starts one by hand."
                )
                return
            self._again = now + FIRST_PAUSE_S * 2 ** (self._restarts - 1)
            self._say(f"{what}; it is started again.")
        if now >= self._again:
            self.start()

    def why_not(self) -> str:
        """Why it is not ready; empty when it is."""
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=2, context=_OURS):
                self._was_ready = True
                return ""
        except urllib.error.HTTPError as error:
            try:
                return str(json.load(error)["reason"])
            except (ValueError, KeyError, TypeError, OSError):
                return f"it answers with status {error.code}"
        except (OSError, http.client.HTTPException):
            return "it does not answer"

    def leave(self, at_once: bool) -> None:
        """Have it turn not ready, give notice (not `at_once`), take nothing new, finish its streams, and end."""
        if self._process is None or self._give_up is not None:
            return
        self._give_up = time.monotonic() + self._drain_s + END_S
        if at_once and not self._was_ready and time.monotonic() - self._started < STARTING_S:
            self._signal(signal.SIGKILL)  # it has served nobody yet, and may be importing its packages
            return
        self._signal(signal.SIGINT if at_once else signal.SIGTERM)

    def finish(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """Wait until it has ended; ended it is, at the latest when its time is up or `hurry()` is true."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        self.leave(at_once=True)
        while process.poll() is None and time.monotonic() < (self._give_up or 0.0) and not hurry():
            time.sleep(_POLL_S)
        self._signal(signal.SIGINT)  # a second signal ends it at once
        try:
            process.wait(KILL_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(KILL_S)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
