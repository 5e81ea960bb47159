"""Which processes belong to a server: those below the one that listens on its port."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

LOOK_S = 2.0  # for how long an answer holds; a server that was started again is another process
GENERATIONS = 8  # between a stub and its server lies one, or a wrapper or two
HERE = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"})
SERVER = "tritonserver"
_LISTENS = "0A"


class ServerAt:
    """Says of a process id whether it belongs to the server that listens on `port` of `host`.

    Everybody's does where that cannot be known: another machine's or user's server, one in another container, or
    somebody who passes connections on.
    """

    def __init__(self, host: str, port: int) -> None:
        self._port = port if host in HERE else 0
        self._found: frozenset[int] = frozenset()
        self._next = 0.0

    def __call__(self, process: int) -> bool:
        if not self._port:
            return True
        now = time.monotonic()
        if now >= self._next:
            self._found = frozenset(pid for pid in listeners(self._port) if _program(pid) == SERVER)
            self._next = now + LOOK_S
        return not self._found or any(descends_from(process, server) for server in self._found)


def listeners(port: int) -> Iterator[int]:
    """The processes that listen on a TCP port, as far as this user may look into them."""
    wanted = {f"socket:[{inode}]" for inode in _sockets(port)}
    for process in Path("/proc").glob("[0-9]*") if wanted else ():
        try:
            links = [os.readlink(file) for file in (process / "fd").iterdir()]
        except OSError:  # gone, or somebody else's
            continue
        if not wanted.isdisjoint(links):
            yield int(process.name)


def _sockets(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/self/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def _program(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return Path(os.fsdecode(command.partition(b"\0")[0])).name


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether the process is `ancestor` or was started by it, directly or not, and lives as its child's child still."""
    for _ in range(GENERATIONS):
        if pid == ancestor:
            return True
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        pid = int(stat.rpartition(")")[2].split()[1])
    return False
