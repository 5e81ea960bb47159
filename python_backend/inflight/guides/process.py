"""One life of the process that checks guides. Used by one thread only: the kernel ends the process with the thread that
started it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

from inflight.engines.python import foreign_environment, lend_package, own_environment, python_executable
from inflight.engines.run_folder import RunFolder
from inflight.guides.cost import WALL_FACTOR, Cost, Meter, judge
from inflight.guides.frames import Check, LinkError, Ready, Start, Verdict, receive_from_worker, send

START_LIMIT_S = 60.0
ANSWER_LIMIT_S = 5.0
EXIT_S = 2.0  # for a process whose end of the connection is closed to be gone
POLL_S = 0.02
CRASHES = (  # signals that a program brings upon itself; any other one came from outside
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGSYS,
    signal.SIGTRAP,
    signal.SIGXCPU,
)
_TICKS = os.sysconf("SC_CLK_TCK")


class TooLong(Exception):
    """A check ran past its limit; the process is gone. `busy` is whether that may be the machine's fault."""

    def __init__(self, busy: bool) -> None:
        super().__init__()
        self.busy = busy


class GuideProcess:
    """A worker: spawned, then ready to check (`wait_ready`), until it is closed."""

    def __init__(self, start: Start, python: str = "") -> None:
        """Spawn it. Raises `LinkError` when that cannot be, and leaves nothing behind then. `python` is another
        interpreter to run it with, for the engine's compiler that only this one has.
        """
        self.refusal = ""  # why no guide can be checked for this model, once it is ready
        self.vocab_size = 0  # of the engine's compiler, likewise
        self._start = start
        with contextlib.ExitStack() as undo:
            try:
                self._spawn(python, undo)
            except OSError as error:
                raise LinkError(f"it cannot be started: {error}") from None
            self._belongings = undo.pop_all()

    def _spawn(self, python: str, undo: contextlib.ExitStack) -> None:
        # What the process imports it has imported when it is ready; until then it needs the folder.
        self._folder = RunFolder()
        undo.callback(self._folder.close)
        environment = self._environment(python, self._folder.path)
        self._connection, theirs = socket.socketpair()
        undo.callback(self._connection.close)
        with theirs:
            self._process = subprocess.Popen(
                [python or python_executable(), "-m", "inflight.guides.worker", str(theirs.fileno())],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @staticmethod
    def _environment(python: str, folder: Path) -> dict[str, str]:
        found = foreign_environment(Path(python), lend_package(folder)) if python else own_environment()
        return {**found, "MALLOC_ARENA_MAX": "2"}  # the compiler's threads would reserve 64 MiB each

    def wait_ready(self) -> None:
        """Until it can check, or says why it never will (`refusal`). Raises `LinkError`; it is of no use then."""
        send(self._connection, self._start)
        try:
            ready = receive_from_worker(self._connection, time.monotonic() + START_LIMIT_S)
        except TimeoutError:
            raise LinkError("it did not start in time") from None
        if not isinstance(ready, Ready):
            raise LinkError("it does not speak this version's protocol")
        self._folder.close()
        self.refusal, self.vocab_size = ready.refusal, ready.vocab_size

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def check(self, check: Check, limit_s: float) -> Verdict:
        """One check. Raises `TooLong` past `limit_s` seconds of computing, `LinkError` when the process is lost; it is
        of no use after either.
        """
        meter = Meter(self._computed_s)
        send(self._connection, check)
        readable = select.poll()
        readable.register(self._connection, select.POLLIN | select.POLLHUP)
        while not readable.poll(POLL_S * 1000):
            spent = meter.spent()
            cost = judge(spent, limit_s)
            if cost is Cost.TOO_HIGH or spent.wall_s > WALL_FACTOR * limit_s:
                self.close()
                raise TooLong(busy=cost is not Cost.TOO_HIGH)
        try:
            verdict = receive_from_worker(self._connection, time.monotonic() + ANSWER_LIMIT_S)
        except TimeoutError:
            raise LinkError("it stopped in the middle of an answer") from None
        if not isinstance(verdict, Verdict):
            raise LinkError("it does not speak this version's protocol")
        return verdict

    def _computed_s(self) -> float:
        """Processor time of the process and its threads so far."""
        try:
            after_name = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(after_name[11]) + int(after_name[12])) / _TICKS

    def crashed(self) -> bool:
        """After `LinkError`: whether it ended by its own doing, not because somebody killed it (the kernel does, where
        memory is short), and is not merely standing still.
        """
        try:
            status = self._process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            return False
        return status > 0 or -status in CRASHES

    def interrupt(self) -> None:
        """End the process from another thread; whoever waits for its answer gets `LinkError`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def close(self) -> None:
        """End it."""
        self._belongings.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
