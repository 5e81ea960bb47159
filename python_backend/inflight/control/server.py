"""A socket for operators: status, health, and an orderly drain.

Each loaded model listens on an AF_UNIX socket in a 0700 folder (`folder.py`). A request is one line of JSON,
the answer another. `python -m inflight.control drain` speaks to every model of this user, in whichever folder it
listens (`candidate_folders`), and is made for a container's preStop hook; `scripts/serve.py` uses the same functions.

Threads `inflight-control`, `inflight-control_N` and `inflight-drain_N`, started and stopped by `ControlServer`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from inflight.control.folder import candidate_folders, control_dir
from inflight.engine_process import unix_path
from inflight.errors import LoadError

log = logging.getLogger("inflight.control")

MAX_LINE_BYTES = 4096
ACCEPT_WAIT_S = 0.25
ANSWER_WAIT_S = 10.0  # beyond the drain's own time
LONGEST_NOTICE_S = LONGEST_DRAIN_S = 3600.0  # the bounds of the model parameters
STARTING_S = 10.0  # a socket younger than this on which nobody listens may be just about to
MAX_NAME = 60  # characters of a model's name in that of its socket
MAX_NAMESAKES = 16
_NAMESAKE = re.compile(r"~\d{1,2}\Z")
Command = Callable[[Mapping[str, Any]], dict[str, Any]]


def _plain_name(name: str) -> str:
    """The model's name as part of a file's. A long name is cut, and told from others by its digest."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    if plain != name or len(plain) > MAX_NAME:
        plain = f"{plain[:MAX_NAME]}~{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
    return plain


def _listen(name: str) -> tuple[socket.socket, Path]:
    """A listening socket of a name that no living model has. Raises OSError."""
    folder, plain, process = control_dir(), _plain_name(name), os.getpid()
    for place in range(MAX_NAMESAKES):  # a process of another PID namespace may have the same id
        path = folder / f"{plain}{f'~{place}' if place else ''}-{process}.sock"
        if _is_abandoned(path):
            path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with unix_path.address(path) as address:
                listener.bind(address)
            listener.listen(64)
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return listener, path
    raise FileExistsError(f"{folder} has {MAX_NAMESAKES} sockets already that are called {plain}-{process}")


def _is_abandoned(path: Path) -> bool:
    """Whether nobody listens on it any more. One that was made a moment ago may be just about to."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, unix_path.address(path) as address:
            connection.settimeout(ACCEPT_WAIT_S)
            connection.connect(address)
    except ConnectionRefusedError:
        with contextlib.suppress(OSError):
            return time.time() - path.lstat().st_mtime > STARTING_S
    except OSError:
        pass
    return False


class ControlServer:
    """Answers commands about one model."""

    def __init__(
        self, name: str, commands: Mapping[str, Command], slow_commands: Mapping[str, Command] | None = None
    ) -> None:
        """Listen for commands about the model `name`; `slow_commands` keep no other waiting. Raises OSError."""
        self._name = name
        self._commands = commands
        self._slow_commands = slow_commands or {}
        self._complained = False
        self._socket, self._path = _listen(name)
        self._socket.settimeout(ACCEPT_WAIT_S)
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="inflight-control")
        self._slow_pool = ThreadPoolExecutor(
            4, thread_name_prefix="inflight-drain"
        )  # further ones wait, health does not
        self._thread = threading.Thread(target=self._run, name="inflight-control", daemon=True)

    def start(self) -> None:
        """Start listening."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread and remove the socket."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        for pool in (self._pool, self._slow_pool):
            pool.shutdown(wait=False, cancel_futures=True)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                self._put_back()
                continue
            except OSError:
                return
            self._pool.submit(self._serve, connection)

    def _put_back(self) -> None:
        """Listen anew where the socket is gone: the user's runtime folder goes with the last session, and there are
        programs that empty temporary folders.
        """
        if self._path.exists():
            return
        try:
            listener, self._path = _listen(self._name)
        except OSError as error:
            if not self._complained:
                log.error("the control socket is gone and cannot be made again (%s)", error)
            self._complained = True
            return
        self._socket.close()
        self._socket, self._complained = listener, False
        self._socket.settimeout(ACCEPT_WAIT_S)

    def _serve(self, connection: socket.socket) -> None:
        """Answer, or have the other pool answer."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            try:
                request = self._read(connection)
                if request is None:
                    return
                slow = self._slow_commands.get(str(request.get("command")))
                if slow is None:
                    self._answer(connection, self._command(request), request)
                else:
                    self._slow_pool.submit(self._serve_slowly, connection, slow, request)
                    stack.pop_all()
            except Exception:
                log.exception("a control command failed")

    def _serve_slowly(self, connection: socket.socket, command: Command, request: Mapping[str, Any]) -> None:
        with connection:
            try:
                self._answer(connection, command, request)
            except OSError:
                log.warning("who ordered a %s did not wait for its end", request.get("command"))
            except Exception:
                log.exception("a control command failed")

    def _command(self, request: Mapping[str, Any]) -> Command:
        known = ", ".join([*self._commands, *self._slow_commands])
        return self._commands.get(
            str(request.get("command")), lambda _: {"error": f"unknown command; known are {known}"}
        )

    @staticmethod
    def _read(connection: socket.socket) -> dict[str, Any] | None:
        """A request; None from a stranger, and from who only looked whether somebody listens."""
        connection.settimeout(2.0)
        return _read_line(connection) if peer_of(connection)[1] in (0, os.getuid()) else None

    @staticmethod
    def _answer(connection: socket.socket, command: Command, request: Mapping[str, Any]) -> None:
        connection.sendall(json.dumps(command(request)).encode() + b"\n")


class Operable(Protocol):
    """What an operator can ask of a model."""

    def status(self) -> dict[str, Any]:
        """What it is doing."""

    def health(self) -> dict[str, Any]:
        """Whether a balancer should send requests here; at once."""

    def drain(self, timeout_ms: int | None, notice_ms: int | None) -> dict[str, Any]:
        """Say so; no new work; finish; end the rest."""

    def undrain(self) -> dict[str, Any]:
        """Serve again."""

    def retire(self) -> None:
        """End the engine in order."""


def open_control(name: str, backend: Operable) -> ControlServer:
    """Start the control socket of one model. Raises `LoadError`: a server that could not be drained is none."""

    def drain(request: Mapping[str, Any]) -> dict[str, Any]:
        answer = backend.drain(_milliseconds(request, "timeout_ms"), _milliseconds(request, "notice_ms"))
        if request.get("stop") is True and answer.get("drained") is True:
            backend.retire()
        return answer

    commands: dict[str, Command] = {
        "status": lambda _: backend.status(),
        "health": lambda _: {"model": name, **backend.health()},
        "undrain": lambda _: backend.undrain(),
    }
    try:
        server = ControlServer(name, commands, {"drain": drain})
    except OSError as error:
        raise LoadError(
            f"its control socket, which drain and status need, cannot be made ({error}); remove what is in the way, or "
            "name another folder in the environment variable INFLIGHT_CONTROL_DIR."
        ) from None
    server.start()
    return server


def _milliseconds(request: Mapping[str, Any], name: str) -> int | None:
    """What a request says of a time; None: nothing that can be one."""
    value = request.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """(process id, 0 where it is not visible from here; user id) of the other end."""
    process, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return process, user


def _read_line(connection: socket.socket) -> dict[str, Any] | None:
    """One JSON object; None when the other end left without a word."""
    data = b""
    while not data.endswith(b"\n") and len(data) < MAX_LINE_BYTES:
        piece = connection.recv(MAX_LINE_BYTES)
        if not piece:
            break
        data += piece
    if not data:
        return None
    content = json.loads(data)
    if not isinstance(content, dict):
        raise ValueError("a control message must be a JSON object")
    return content


def ask(
    path: Path, request: Mapping[str, Any], timeout_s: float, only: Collection[int] | None = None
) -> dict[str, Any]:
    """One command to one socket; with `only`, to none but a model in one of these processes.

    The kernel says who listens: the process id in the socket's name may be that of another PID namespace. Raises
    OSError when nobody answers (ProcessLookupError when another process would), ValueError for nonsense.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        with unix_path.address(path) as address:
            connection.connect(address)
        process, user = peer_of(connection)
        if user != path.parent.lstat().st_uid or (only is not None and process not in only):
            raise ProcessLookupError(f"{path.name} is another process's")
        connection.sendall(json.dumps(dict(request)).encode() + b"\n")
        answer = _read_line(connection)
        if answer is None:
            raise ValueError("no answer")
        return answer


def drain_request(notice_ms: int | None, timeout_ms: int | None, stop: bool) -> tuple[dict[str, Any], float]:
    """The order to drain, and for how many seconds its answer is waited for. None: as the model says."""
    request: dict[str, Any] = {"command": "drain", "stop": stop}
    times = {"notice_ms": notice_ms, "timeout_ms": timeout_ms}
    request |= {name: value for name, value in times.items() if value is not None}
    notice_s = LONGEST_NOTICE_S if notice_ms is None else notice_ms / 1000
    limit_s = LONGEST_DRAIN_S if timeout_ms is None else timeout_ms / 1000
    return request, notice_s + limit_s + ANSWER_WAIT_S


def ask_all(request: Mapping[str, Any], timeout_s: float, models: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """The same to every model that this user may speak to, at the same time, or to those of these names; sockets that
    nobody owns any more are removed.
    """
    paths = [path for folder in candidate_folders() for path in sorted(folder.glob("*.sock"))]
    if models:
        wanted = {_plain_name(model) for model in models}
        paths = [path for path in paths if _NAMESAKE.sub("", path.stem.rpartition("-")[0]) in wanted]

    def one(path: Path) -> tuple[str, dict[str, Any]]:
        try:
            return path.stem, ask(path, request, timeout_s)
        except ConnectionRefusedError:
            # In another user's folder a name may lead anywhere: root leaves it to that user.
            if path.parent.lstat().st_uid == os.getuid() and _is_abandoned(path):
                path.unlink(missing_ok=True)
            return path.stem, {}
        except (OSError, ValueError) as error:
            return path.stem, {"error": str(error) or "no answer"}

    with ThreadPoolExecutor(max(len(paths), 1)) as pool:
        return {name: answer for name, answer in pool.map(one, paths) if answer}
