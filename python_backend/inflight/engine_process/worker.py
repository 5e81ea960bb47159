"""The engine process: `python -m inflight.engine_worker RUN_DIR`.

One thread owns everything: it reads commands, steps the engine and writes outputs. It connects back to the socket in
the 0700 run folder with the one-time token it finds (and removes) there, and it dies with its parent: end-of-file on
the socket, and PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import time
from pathlib import Path

from inflight.engine_process import frames, unix_path
from inflight.engine_process.framing import FrameBuffer
from inflight.engine_process.parent import die_with_parent
from inflight.engine_process.watchdog import StatePage, WorkerState
from inflight.engines.base import Engine, EngineRefusal
from inflight.engines.factory import create_engine
from inflight.engines.spec import WorkerSpec
from inflight.errors import LoadError, sendable, unforeseen

log = logging.getLogger("inflight.engine_worker")

IDLE_WAIT_S = 0.25  # how long to sleep without work; also the heartbeat while idle
STEP_WAIT_S = 0.005  # how long a step may wait for the engine's own threads
SOCKET_BUFFER_BYTES = 4 << 20


def main(run_dir: Path) -> int:
    """0 after an orderly end, 1 when the engine could not be loaded or broke."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then closes us in order
    spec = WorkerSpec.from_json(json.loads((run_dir / "spec.json").read_text(encoding="utf-8")))
    page = StatePage(run_dir / "state", create=False)
    page.write(WorkerState.STARTING, time.monotonic_ns())
    token_file = run_dir / "token"
    token = token_file.read_text(encoding="utf-8")
    token_file.unlink()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    with unix_path.address(run_dir / "engine.sock") as address:
        connection.connect(address)
    connection.sendall(frames.encode(frames.Hello(token, os.getpid())))
    try:
        engine = create_engine(spec)
    except LoadError as error:
        connection.sendall(frames.encode(frames.LoadFailed(sendable(str(error)))))
        return 1
    except Exception as error:
        log.exception("the engine could not be loaded")
        connection.sendall(frames.encode(frames.LoadFailed(sendable(unforeseen(error)))))
        return 1
    connection.sendall(frames.encode(frames.Ready(engine.info)))
    try:
        Worker(engine, connection, page).run()
    finally:
        engine.close()
    return 0


class Worker:
    """The loop: commands in, one step, outputs out."""

    def __init__(self, engine: Engine, connection: socket.socket, page: StatePage) -> None:
        self._engine = engine
        self._connection = connection
        self._page = page
        self._buffer = FrameBuffer(frames.MAX_FRAME_BYTES)
        self._active: dict[int, int] = {}  # request id → sequences that have not ended
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN | select.POLLHUP)
        self._leaving = False

    def run(self) -> None:
        """Until Shutdown or the parent's end."""
        while True:
            self._page.write(WorkerState.IDLE, time.monotonic_ns())
            self._read_commands(0.0 if self._active else IDLE_WAIT_S)
            if self._leaving:
                return
            if self._active:
                self._step()

    def _read_commands(self, wait_s: float) -> None:
        while self._poll.poll(wait_s * 1000):
            wait_s = 0.0
            data = self._connection.recv(1 << 18)
            if not data:
                self._leaving = True
                return
            for body in self._buffer.feed(data):
                self._obey(frames.decode_to_engine(body))

    def _obey(self, message: frames.ToEngine) -> None:
        if isinstance(message, frames.Add):
            request = message.request
            try:
                self._engine.add(request)
            except EngineRefusal as refusal:
                self._send(frames.Refused(request.request_id, str(refusal), refusal.parameter))
            else:
                self._active[request.request_id] = request.sampling.num_sequences
        elif isinstance(message, frames.Cancel):
            self._engine.cancel(message.request_id)
        else:
            self._leaving = True

    def _step(self) -> None:
        self._page.write(WorkerState.STEPPING, time.monotonic_ns())
        outputs = self._engine.step(STEP_WAIT_S)
        for output in outputs:
            if output.finish is not None or output.error is not None:
                self._active[output.request_id] -= 1
                if not self._active[output.request_id]:
                    del self._active[output.request_id]
        if outputs:
            self._send(frames.pack_outputs(outputs, self._engine.stats()))

    def _send(self, message: frames.FromEngine) -> None:
        self._page.write(WorkerState.SENDING, time.monotonic_ns())
        self._connection.sendall(frames.encode(message))
