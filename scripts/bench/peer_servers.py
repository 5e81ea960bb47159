"""A peer as processes: started, stopped (SIGSTOP) while another one is measured, woken, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from bench.arms import cpu_seconds
from bench.peer_client import Question, Transport, drive
from inflight_tools.common.layout import LOGS
from inflight_tools.common.report import Failure
from inflight_tools.common.resources import descendants
from inflight_tools.load.perf_analyzer import Load
from inflight_tools.load.profile_export import Request
from inflight_tools.server.children import start_child
from inflight_tools.server.processes import is_alive, kill_all, marked_pids
from inflight_tools.server.server import Ports

_MARK = "INFLIGHT_PEER_ID"  # in the environment of everything that a peer starts
_POLL_S = 0.2
_STOP_S = 15.0


class Peer(Protocol):
    """One side of the comparison."""

    name: str
    weights: str  # as the report calls them, such as "int8" or "bf16"
    most_in_flight: int  # 1 for a side that takes one request after the other

    def start(self) -> None:
        """Start and wait until it serves. Raises `Failure`."""

    def stop(self) -> None:
        """End all its processes."""

    def resume(self) -> None:
        """Let its processes run."""

    def pause(self) -> None:
        """Stop them; nothing of this peer uses the CPU from here on."""

    def cpu_s(self) -> float:
        """CPU seconds of its processes so far, the client not included."""

    def memory(self) -> int:
        """Resident bytes of its processes; what they share is counted once in each."""

    def drive(self, questions: Sequence[Question], load: Load, seed: str) -> list[Request]:
        """Have every question answered."""

    def describe(self) -> dict[str, str]:
        """Version and settings, without any path of this machine."""


class ProcessPeer:
    """What peers with processes of their own have in common."""

    most_in_flight = 1 << 20

    def __init__(self, name: str, weights: str, ready_s: float) -> None:
        """Nothing is started yet; it has `ready_s` seconds to become ready."""
        self.name = name
        self.weights = weights
        self.port = Ports.free().http
        self._ready_s = ready_s
        self._mark = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"peer-{name.replace(' ', '-')}.log"

    def command(self) -> list[str]:
        """What to start."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """What to add to the environment."""
        return {}

    def ready_url(self) -> str:
        """Answers 200 when the peer serves."""
        raise NotImplementedError

    def transport(self) -> Transport:
        """How to ask it."""
        raise NotImplementedError

    def start(self) -> None:
        """See `Peer`."""
        with self.log.open("wb") as log:
            self._process = start_child(
                lambda bind: subprocess.Popen(
                    self.command(),
                    env={**os.environ, **self.environment(), _MARK: self._mark},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=bind,
                )
            )
        give_up = time.monotonic() + self._ready_s
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.stop()
                raise Failure(f"{self.name} did not start: the end of {self.log} says why.")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """See `Peer`."""
        if self._process is None:
            return
        self.resume()
        known = self._pids()
        self._process.terminate()
        give_up = time.monotonic() + _STOP_S
        while any(map(is_alive, known)) and time.monotonic() < give_up:
            self._process.poll()
            time.sleep(_POLL_S)
        kill_all(lambda: {*self._pids(), *filter(is_alive, known)})
        self._process.wait(timeout=10)
        self._process = None

    def resume(self) -> None:
        """See `Peer`."""
        self._signal(signal.SIGCONT)

    def pause(self) -> None:
        """See `Peer`."""
        self._signal(signal.SIGSTOP)

    def cpu_s(self) -> float:
        """See `Peer`."""
        return sum(map(cpu_seconds, self._pids()))

    def memory(self) -> int:
        """See `Peer`."""
        return sum(map(resident_bytes, self._pids()))

    def drive(self, questions: Sequence[Question], load: Load, seed: str) -> list[Request]:
        """See `Peer`."""
        return drive(self.transport(), questions, load, seed)

    def _pids(self) -> list[int]:
        """By descent and by the mark: one of vLLM's processes writes its title over its environment, and whoever has
        lost its parent is nobody's descendant.
        """
        process = self._process
        tree = [process.pid, *descendants(process.pid)] if process is not None else []
        return [pid for pid in {*tree, *marked_pids(_MARK, self._mark)} if is_alive(pid)]

    def _signal(self, number: int) -> None:
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.ready_url(), timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def resident_bytes(pid: int) -> int:
    """Of a living process."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
