"""Several gateway processes under one parent: `--workers N`.

The parent opens one listening socket for each worker, all on the same port (SO_REUSEPORT: the kernel spreads
connections over them), and keeps them: what waits in the queue of a worker that died is served by its successor. It
hands signals on, starts again what dies, and ends when its workers have ended. A worker that has lost its parent reads
so on a pipe, and drains. Counts of all workers are merged by prometheus_client, over files in a folder of the parent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from prometheus_client import multiprocess

from inflight_gateway.http.metrics import SHARED

log = logging.getLogger("inflight_gateway")

VARIABLE = "INFLIGHT_GATEWAY_WORKER"  # of a worker: descriptors of its socket and of the parent's pipe
BACKLOG = 2048
LOOK_S = 0.1
AGAIN_S = 1.0  # before a worker that died is started again
MOST_DEATHS, WITHIN_S = 5, 60.0
KILL_S = 10.0  # beyond what a drain may take


def inherited(environment: Mapping[str, str]) -> tuple[socket.socket, int] | None:
    """In a worker: its listening socket, and the pipe that ends with its parent. None: this is no worker."""
    given = environment.get(VARIABLE)
    if not given:
        return None
    listening, pipe = (int(number) for number in given.split(":"))
    return socket.socket(fileno=listening), pipe


def tell_when_orphaned(pipe: int, act: Callable[[], None]) -> None:
    """In a worker's event loop: `act` once the parent is gone."""
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(pipe)
        act()

    loop.add_reader(pipe, ended)


def listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """So many listening sockets on one port. Raises OSError, also where another program has the port."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, socket.SOCK_STREAM) as alone:  # a second gateway would share the port in silence
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(address)
    found = []
    for _ in range(count):
        one = socket.socket(family, socket.SOCK_STREAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(address)
        one.listen(BACKLOG)
        address = one.getsockname()  # of port 0, all have the one that the first was given
        found.append(one)
    return found


class Workers:
    """The parent of several workers."""

    def __init__(self, arguments: Sequence[str], sockets: Sequence[socket.socket], folder: str) -> None:
        """`arguments`: of `python -m inflight_gateway`; `folder`: for the merged metrics."""
        self._arguments = list(arguments)
        self._sockets = sockets
        self._folder = folder
        self._reading, self._writing = os.pipe()  # nobody writes: it ends with this process
        self._running: dict[int, subprocess.Popen[bytes]] = {}  # place → process
        self._again: dict[int, float] = {}  # place → when to start it again
        self._deaths: list[float] = []
        self._leaving = 0
        self._failed = False

    def run(self, drain_s: float) -> int:
        """Until all have ended; `drain_s`: the longest that a drain may take. Returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._signalled)
        for place in range(len(self._sockets)):
            self._start(place)
        end = 0.0
        while self._running or self._again:
            time.sleep(LOOK_S)
            self._look()
            if self._leaving and not end:
                end = time.monotonic() + drain_s + KILL_S
            if end and time.monotonic() > end:
                for process in self._running.values():
                    process.kill()
        return int(self._failed)

    def _start(self, place: int) -> None:
        listening = self._sockets[place].fileno()
        environment = dict(os.environ, **{VARIABLE: f"{listening}:{self._reading}", SHARED: self._folder})
        self._running[place] = subprocess.Popen(
            [sys.executable, "-m", "inflight_gateway", *self._arguments],
            env=environment,
            pass_fds=(listening, self._reading),
            start_new_session=True,  # Ctrl-C reaches the parent alone, which hands it on
        )

    def _look(self) -> None:
        now = time.monotonic()
        for place, process in list(self._running.items()):
            status = process.poll()
            if status is None:
                continue
            del self._running[place]
            # A worker's gauges end with it; what it has counted stays.
            multiprocess.mark_process_dead(process.pid, self._folder)  # type: ignore[no-untyped-call]
            if self._leaving:
                # One that was still starting has no drain yet: the signal ends it.
                self._failed = self._failed or status not in (0, -signal.SIGTERM, -signal.SIGINT)
                continue
            log.error("worker %d ended with status %d, and is started again", place, status)
            self._deaths = [one for one in self._deaths if now - one < WITHIN_S] + [now]
            if len(self._deaths) > MOST_DEATHS:
                log.error("workers end again and again: the gateway gives up")
                self._failed = True
                self._hand_on(signal.SIGTERM)
            else:
                self._again[place] = now + AGAIN_S
        for place, at in list(self._again.items()):
            if self._leaving:
                del self._again[place]
            elif now >= at:
                del self._again[place]
                self._start(place)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        self._hand_on(number)

    def _hand_on(self, number: int) -> None:
        if number != signal.SIGHUP:
            self._leaving += 1
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


def serve(arguments: Sequence[str], host: str, port: int, count: int, drain_s: float) -> int:
    """`count` workers on one port, until asked to stop. Raises OSError where the port cannot be had."""
    sockets = listeners(host, port, count)
    with tempfile.TemporaryDirectory(prefix="inflight-gateway-") as folder:
        return Workers(arguments, sockets, folder).run(drain_s)
