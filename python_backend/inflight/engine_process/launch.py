"""Starting one engine process and hearing that it is ready. Used by the supervisor's thread only."""

from __future__ import annotations

import collections
import contextlib
import hmac
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from inflight.engine_process import frames, unix_path
from inflight.engine_process.framing import FrameBuffer, FrameError
from inflight.engine_process.watchdog import StatePage
from inflight.engines.base import EngineInfo
from inflight.engines.openvino.pages import large_pages
from inflight.engines.python import foreign_environment, lend_package, own_environment, python_executable
from inflight.engines.run_folder import RunFolder
from inflight.engines.spec import WorkerSpec
from inflight.errors import LoadError

log = logging.getLogger("inflight.supervisor")

POLL_S = 0.1
EXIT_WAIT_S = 5.0


class EngineProcess:
    """One life of an engine process: its run folder, its socket, its page and the process itself."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Make what the process needs; raises `LoadError` when that cannot be, and leaves nothing behind then."""
        self._spec = spec
        self._token = secrets.token_hex(32)
        self._process: subprocess.Popen[bytes] | None = None
        self._if_late = ""  # what else to look at when the engine does not load in time
        self.connection: socket.socket | None = None
        self.buffer = FrameBuffer(frames.MAX_FRAME_BYTES)
        self._received: collections.deque[bytes] = collections.deque()  # whole frames that nobody has taken yet
        with contextlib.ExitStack() as undo:
            try:
                self._prepare(undo)
            except OSError as error:
                raise LoadError(
                    f"the engine's folder in the system's temporary one cannot be made ({error.strerror}); free space "
                    "there, or name another folder in the environment variable TMPDIR."
                ) from None
            self._belongings = undo.pop_all()

    def _prepare(self, undo: contextlib.ExitStack) -> None:
        run_folder = RunFolder()
        undo.callback(run_folder.close)
        self._folder = run_folder.path
        (self._folder / "spec.json").write_text(json.dumps(self._spec.to_json()), encoding="utf-8")
        token_file = self._folder / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(self._token, encoding="utf-8")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        undo.callback(self._listener.close)
        with unix_path.address(self._folder / "engine.sock") as address:
            self._listener.bind(address)
        self._listener.listen(4)
        self._listener.settimeout(POLL_S)
        self.page = StatePage(self._folder / "state", create=True)
        undo.callback(self.page.close)

    @property
    def pid(self) -> int:
        """The engine's process id; 0 before it was started."""
        return self._process.pid if self._process is not None else 0

    def start(self, timeout_s: float, stopping: Callable[[], bool]) -> EngineInfo:
        """Spawn, and wait until the engine is ready. Raises `LoadError` with the reason when it is not in
        `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        environment = self._environment()
        self._process = subprocess.Popen(
            self._command(environment),
            cwd=self._folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # its own group: Ctrl-C reaches the server alone, and a kill reaches mpirun's ranks
        )
        self.connection = self._accept(deadline, stopping)
        while True:
            message = self._receive(deadline, stopping)
            if isinstance(message, frames.Ready):
                return message.info
            if isinstance(message, frames.LoadFailed):
                raise LoadError(message.message)
            raise LoadError("the engine process does not speak this version's protocol; install Inflight again.")

    def _environment(self) -> dict[str, str]:
        """The engine process finds this package; an interpreter of its own finds nothing else of the server's."""
        if self._spec.python:
            environment = foreign_environment(Path(self._spec.python), lend_package(self._folder))
        else:
            environment = own_environment()
        return {**environment, **large_pages(environment)} if self._spec.engine == "openvino" else environment

    def _command(self, environment: dict[str, str]) -> list[str]:
        """The command of the engine process; `environment` gets what it needs. Raises `LoadError`."""
        python = self._spec.python or python_executable()
        if self._spec.engine == "tensorrt_llm":
            from inflight.engine_process.ranks import ranks_command
            from inflight.engines.tensorrt_llm import spawn

            ranks = ranks_command(self._spec, python, self._folder, environment)
            if ranks is not None:
                environment.update(ranks[1])
                return ranks[0]
            if spawn.spawns(self._spec):
                spawn.without_slurm(environment)
                self._if_late = f"; {spawn.ADVICE}"
        return [python, "-m", "inflight.engine_worker", str(self._folder)]

    def _accept(self, deadline: float, stopping: Callable[[], bool]) -> socket.socket:
        """The engine's connection, proven by the token; strangers are turned away."""
        code = None
        while True:
            self._check(code, deadline, stopping)
            code = self.exit_code()  # asked before the socket: why it ended may still be there to be read
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(POLL_S)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            self.connection = connection
            hello = self._receive(deadline, stopping)
            if isinstance(hello, frames.Hello) and hmac.compare_digest(hello.token, self._token):
                return connection
            connection.close()

    def _receive(self, deadline: float, stopping: Callable[[], bool]) -> frames.FromEngine:
        assert self.connection is not None
        code = None
        while not self._received:
            self._check(code, deadline, stopping)
            code = self.exit_code()  # as in `_accept`
            try:
                data = self.connection.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:
                data = b""
            self._received.extend(self.buffer.feed(data))
            if not data and not self._received:
                self._check(self.exit_code(), deadline, stopping)
                raise LoadError("the engine process closed its connection while it loaded; its log says why.")
        try:
            return frames.decode_from_engine(self._received.popleft())
        except FrameError:
            raise LoadError(
                "the engine process does not speak this version's protocol; install Inflight again."
            ) from None

    def _check(self, code: int | None, deadline: float, stopping: Callable[[], bool]) -> None:
        if code is not None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise LoadError(f"the engine process {how} while it loaded; its log above says why (too little memory?).")
        if stopping():
            raise LoadError("the server is stopping.")
        if time.monotonic() > deadline:
            raise LoadError(
                f"the engine did not load in the time allowed; raise the model parameter load_timeout_s{self._if_late}."
            )

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process is not None else None

    def kill(self, grace_s: float = 0.0) -> None:
        """End the process and its group; with `grace_s` it may leave by itself first. Removes the run folder."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            try:
                self._process.wait(EXIT_WAIT_S)
            except subprocess.TimeoutExpired:
                log.error("the engine process %d does not end although it was killed", self._process.pid)
        if self.connection is not None:
            self.connection.close()
        self._belongings.close()
