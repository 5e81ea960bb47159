"""The engine process: `python -m inflight.engine_worker RUN_DIR`.

One thread owns everything: it reads commands, steps the engine and writes outputs. It connects back to the socket in
the 0700 run folder with the one-time token it finds (and removes) there, and it dies with its parent: end-of-file on
the socket, and PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import collections
import json
import logging
import os
import select
import signal
import socket
import time
from pathlib import Path

from inflight.engine_process import frames, processors, unix_path
from inflight.engine_process.framing import FrameBuffer
from inflight.engine_process.parent import die_with_parent
from inflight.engine_process.roster import Roster
from inflight.engine_process.watchdog import IDLE_WAIT_S, StatePage, WorkerState
from inflight.engines.base import Engine, EngineBroken, EngineOutput, EngineRefusal, EngineRequest, EngineStats
from inflight.engines.factory import create_engine
from inflight.engines.faults import end_of_add, sparingly
from inflight.engines.spec import WorkerSpec
from inflight.errors import LoadError, sendable, unforeseen

log = logging.getLogger("inflight.engine_worker")

STEP_WAIT_S = 0.005  # how long a step may wait for the engine's own threads
PAUSE_S = 0.001  # how long to wait for commands after a step that had nothing to do, though there are requests
OBEY_S = 0.05  # how long commands may hold up the next step
QUICK_STEP_S = 0.0005
UNDO_STEPS = 20  # in which the engine gets rid of what it holds of requests that have ended without it
LOOK_S = 1.0  # how often to look for requests that the engine owes an end
SOCKET_BUFFER_BYTES = 4 << 20


def main(run_dir: Path) -> int:
    """0 after an orderly end, 1 when the engine could not be loaded or broke."""
    die_with_parent()
    processors.take_all()
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
    """The loop: commands in, one step, outputs out. `engines/faults.py` says what an exception of the engine ends,
    `roster.py` what an engine may say.
    """

    def __init__(self, engine: Engine, connection: socket.socket, page: StatePage) -> None:
        self._engine = engine
        self._connection = connection
        self._page = page
        self._buffer = FrameBuffer(frames.MAX_FRAME_BYTES)
        self._commands: collections.deque[bytes] = collections.deque()  # bounded by what admission lets run
        self._roster = Roster()
        self._stats = EngineStats()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN | select.POLLHUP)
        self._pause_s = 0.0  # before the next step
        self._looked = time.monotonic()
        self._undoing = 0  # steps to take although nobody waits for any
        self.leaving = False

    def run(self) -> None:
        """Until Shutdown or the parent's end. Raises what shows the engine to be broken."""
        while not self.leaving:
            self.turn()

    def turn(self) -> None:
        """Obey what has come, then take one step if there is anything to do."""
        self._page.write(WorkerState.IDLE, time.monotonic_ns())
        busy = bool(self._roster or self._undoing)
        self._read_commands(0.0 if self._commands else self._pause_s if busy else IDLE_WAIT_S)
        self._obey_commands()
        if (self._roster or self._undoing) and not self.leaving:
            self._undoing = max(0, self._undoing - 1)
            self._step()

    def _read_commands(self, wait_s: float) -> None:
        while self._poll.poll(wait_s * 1000):
            wait_s = 0.0
            data = self._connection.recv(1 << 18)
            if not data:
                self.leaving = True
                return
            self._commands.extend(self._buffer.feed(data))

    def _obey_commands(self) -> None:
        """In their order, each with its own beat; what takes long gives way to a step for those who are under way."""
        began = time.monotonic()
        while self._commands and not self.leaving:
            self._obey(frames.decode_to_engine(self._commands.popleft()))
            if self._roster and time.monotonic() - began > OBEY_S:
                return

    def _obey(self, message: frames.ToEngine) -> None:
        adding = isinstance(message, frames.Add)
        self._page.write(WorkerState.ADDING if adding else WorkerState.IDLE, time.monotonic_ns())
        if isinstance(message, frames.Add):
            self._add(message.request)
        elif isinstance(message, frames.Cancel):
            self._cancel(message.request_id)
        else:
            self.leaving = True

    def _add(self, request: EngineRequest) -> None:
        try:
            self._engine.add(request)
        except Exception as error:  # noqa: BLE001 — `end_of_add` tells them apart
            end = end_of_add(error)
            if not isinstance(error, EngineRefusal):
                sparingly.exception("add", "the engine could not take request %d of its own", request.request_id)
                self._undo(request.request_id)  # the engine may hold a part of it
            self._send(frames.Refused(request.request_id, end.message, end.parameter, end.code))
        else:
            self._roster.add(request.request_id, request.sampling.num_sequences)

    def _cancel(self, request_id: int) -> None:
        self._roster.cancel(request_id, time.monotonic())
        self._tell_engine_to_end(request_id)

    def _undo(self, request_id: int) -> None:
        """End in the engine what has ended for the backend."""
        self._undoing = UNDO_STEPS
        self._cancel(request_id)

    def _tell_engine_to_end(self, request_id: int) -> None:
        """Whatever becomes of it, the roster sees to the request's end."""
        try:
            self._engine.cancel(request_id)
        except EngineBroken:
            raise
        except Exception:  # noqa: BLE001 — of whatever kind, it concerns one request, which is about to end
            sparingly.exception("cancel", "the engine failed to cancel request %d of its own", request_id)

    def _step(self) -> None:
        began = time.monotonic()
        self._page.write(WorkerState.STEPPING, time.monotonic_ns())
        outputs = self._engine.step(STEP_WAIT_S)
        passed, dropped = self._roster.pass_on(outputs)
        for output in dropped:
            where = (output.sequence_index, output.request_id)
            sparingly.warning("drop", "dropped what the engine said of sequence %s of request %s: it has none", *where)
        now = time.monotonic()
        self._pause_s = PAUSE_S if not outputs and now - began < QUICK_STEP_S else 0.0
        if now - self._looked > LOOK_S:
            self._looked = now
            passed += self._missing(now, bool(passed))
        if passed:
            self._send_outputs(passed, self._ask_stats())

    def _missing(self, now: float, said_something: bool) -> list[EngineOutput]:
        """The ends that the engine should have given and did not."""
        ends = self._roster.owed(now) + self._roster.forgotten(now, self._ask_stats(), said_something)
        if ends:
            sparingly.warning("owe", "the engine gave %d sequences no end; they are given up", len(ends))
        return ends

    def _ask_stats(self) -> EngineStats:
        """The engine's, or its last ones where it fails to give them."""
        try:
            stats = self._engine.stats()
            frames.encode(frames.Outputs([], stats))  # else every output that travels with it would be at fault
            self._stats = stats
        except EngineBroken:
            raise
        except Exception:  # noqa: BLE001 — no request suffers for statistics
            sparingly.exception("stats", "the engine failed to say its statistics")
        return self._stats

    def _send_outputs(self, outputs: list[EngineOutput], stats: EngineStats) -> None:
        """One iteration, in as many frames as it takes. An output that no frame can hold ends its sequence."""
        try:
            frame = frames.encode(frames.pack_outputs(outputs, stats))
        except Exception:  # noqa: BLE001 — too large, or things in it that are not what they should be
            if len(outputs) > 1:
                half = len(outputs) // 2
                self._send_outputs(outputs[:half], stats)
                self._send_outputs(outputs[half:], stats)
                return
            frame = frames.encode(frames.pack_outputs([self._unsayable(outputs[0])], stats))
        self._send_frame(frame)

    def _unsayable(self, output: EngineOutput) -> EngineOutput:
        """What is said in place of an output that cannot be sent: too large, or made of the wrong things."""
        request_id, index = int(output.request_id), int(output.sequence_index)
        sparingly.exception("output", "what the engine said of request %d of its own cannot be sent", request_id)
        self._roster.end(request_id, index)
        self._undo(request_id)
        return EngineOutput(request_id, index, [], error="the engine's output cannot be sent")

    def _send(self, message: frames.FromEngine) -> None:
        self._send_frame(frames.encode(message))

    def _send_frame(self, frame: bytes) -> None:
        self._page.write(WorkerState.SENDING, time.monotonic_ns())
        self._connection.sendall(frame)
