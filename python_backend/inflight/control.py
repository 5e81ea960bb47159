"""A socket for operators: status, and an orderly drain.

Each loaded model listens on an AF_UNIX socket in a 0700 folder (`INFLIGHT_CONTROL_DIR`, else one per user under the
temporary folder). A request is one line of JSON, the answer another. `python -m inflight.control drain` speaks to every
model of this user and is made for a container's preStop hook; `scripts/serve.py` uses the same functions.

Threads `inflight-control` and `inflight-control_N`, started and stopped by `ControlServer`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import stat
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger("inflight.control")

MAX_LINE_BYTES = 4096
ACCEPT_WAIT_S = 0.25
ANSWER_WAIT_S = 10.0  # beyond the drain's own time
Command = Callable[[Mapping[str, Any]], dict[str, Any]]


def control_dir() -> Path:
    """The folder of the control sockets; made 0700. Raises OSError when it belongs to somebody else."""
    named = os.environ.get("INFLIGHT_CONTROL_DIR")
    folder = Path(named) if named else Path(tempfile.gettempdir()) / f"inflight-control-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} must be a folder of this user that nobody else can enter (mode 0700)")
    return folder


class ControlServer:
    """Answers commands about one model."""

    def __init__(self, name: str, commands: Mapping[str, Command]) -> None:
        self._commands = commands
        self._path = control_dir() / f"{name}-{os.getpid()}.sock"
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self._path))
        self._socket.listen(4)
        self._socket.settimeout(ACCEPT_WAIT_S)
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="inflight-control")  # status is answered during a drain
        self._thread = threading.Thread(target=self._run, name="inflight-control", daemon=True)

    def start(self) -> None:
        """Start listening."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread and remove the socket."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self._pool.submit(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._answer(connection)
            except Exception:
                log.exception("a control command failed")

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(2.0)
        _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user not in (0, os.getuid()):
            return
        request = _read_line(connection)
        command = self._commands.get(str(request.get("command")))
        answer = command(request) if command else {"error": f"unknown command; known are {', '.join(self._commands)}"}
        connection.sendall(json.dumps(answer).encode() + b"\n")


class Operable(Protocol):
    """What an operator can ask of a model."""

    def status(self) -> dict[str, Any]:
        """What it is doing."""

    def drain(self, timeout_ms: int | None) -> dict[str, Any]:
        """No new work; finish; end the rest."""

    def retire(self) -> None:
        """End the engine in order."""


def open_control(name: str, backend: Operable) -> ControlServer | None:
    """Start the control socket of one model; a server that cannot have one runs without."""

    def drain(request: Mapping[str, Any]) -> dict[str, Any]:
        timeout = request.get("timeout_ms")
        answer = backend.drain(timeout if isinstance(timeout, int) and timeout >= 0 else None)
        if request.get("stop") is True:
            backend.retire()
        return answer

    try:
        server = ControlServer(name, {"status": lambda _: backend.status(), "drain": drain})
    except OSError as error:
        log.warning("no control socket (%s): drain and status are not available", error)
        return None
    server.start()
    return server


def _read_line(connection: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n") and len(data) < MAX_LINE_BYTES:
        piece = connection.recv(MAX_LINE_BYTES)
        if not piece:
            break
        data += piece
    content = json.loads(data)
    if not isinstance(content, dict):
        raise ValueError("a control message must be a JSON object")
    return content


def ask(path: Path, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """One command to one socket. Raises OSError when nobody answers, ValueError for nonsense."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        connection.sendall(json.dumps(dict(request)).encode() + b"\n")
        return _read_line(connection)


def ask_all(request: Mapping[str, Any], timeout_s: float) -> dict[str, dict[str, Any]]:
    """The same to every model of this user, at the same time; sockets that nobody owns any more are removed."""
    paths = sorted(control_dir().glob("*.sock"))

    def one(path: Path) -> tuple[str, dict[str, Any]]:
        try:
            return path.stem, ask(path, request, timeout_s)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return path.stem, {}
        except (OSError, ValueError) as error:
            return path.stem, {"error": str(error) or "no answer"}

    with ThreadPoolExecutor(max(len(paths), 1)) as pool:
        return {name: answer for name, answer in pool.map(one, paths) if answer}


def main(arguments: list[str]) -> int:
    """`status` or `drain`; prints one line of JSON per model. 0 when every model answered."""
    parser = argparse.ArgumentParser(prog="python -m inflight.control", description="Speak to the running models.")
    parser.add_argument("command", choices=("status", "drain"))
    parser.add_argument("--timeout-ms", type=int, default=None, help="how long streams may go on (drain)")
    parser.add_argument("--stop", action="store_true", help="end the engines too, once drained")
    options = parser.parse_args(arguments)
    request: dict[str, Any] = {"command": options.command, "stop": options.stop}
    if options.timeout_ms is not None:
        request["timeout_ms"] = options.timeout_ms
    wait = (options.timeout_ms or 3_600_000) / 1000 if options.command == "drain" else 0.0
    answers = ask_all(request, wait + ANSWER_WAIT_S)
    for name, answer in answers.items():
        print(json.dumps({"model": name, **answer}))
    if not answers:
        print("no model of this user is running (or INFLIGHT_CONTROL_DIR differs)", file=sys.stderr)
    return 1 if any("error" in answer for answer in answers.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
