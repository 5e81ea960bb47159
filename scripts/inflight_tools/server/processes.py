"""Questions to /proc about a server's processes: who descends from it, what they hold open, how to end them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_LISTEN, _EMPTY = "0A", "00000000:00000000"  # in /proc/net/tcp: a state, and the queues (to send:to be read)


def living_pids() -> Iterator[int]:
    """Every process of this machine that is visible and not a zombie."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and is_alive(int(entry.name)):
            yield int(entry.name)


def is_alive(pid: int) -> bool:
    """Whether the process exists and still holds something (a zombie whose threads have all ended does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # pid (name, which may hold anything) state ...
        return stat.rpartition(")")[2].split()[0] not in ("Z", "X") or len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def command_line(pid: int) -> list[str]:
    """The arguments that the process was started with; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def marked_pids(variable: str, value: str) -> list[int]:
    """The living processes that were started with `variable=value` in their environment, ours not included.

    An environment is inherited across sessions, process groups and adoption by init, so this finds what a tree walk
    would miss.
    """
    wanted = f"{variable}={value}".encode()
    found = []
    for pid in living_pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if pid != os.getpid() and wanted in environment.split(b"\0"):
            found.append(pid)
    return found


def owes_nothing(pid: int, ports: Iterable[int]) -> bool:
    """Whether every connection to one of the process's `ports` is idle: nothing was sent that has not arrived, nothing
    has arrived that was not read. Looks at the network that the process sees.
    """
    wanted = {f"{port:04X}" for port in ports}
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, queues, *_ = line.split()
            if local.rpartition(":")[2] in wanted and state != _LISTEN and queues != _EMPTY:
                return False
    return True


def kill_all(pids: Callable[[], Iterable[int]], timeout_s: float = 5.0) -> list[int]:
    """SIGKILL whatever `pids` yields until it yields nothing and those have ended; returns those that were killed.

    A process that ends has no environment while it gives back its memory, but still its files and locks.

    Raises `TimeoutError` when something is still there after `timeout_s` seconds.
    """
    killed: set[int] = set()
    give_up = time.monotonic() + timeout_s
    while left := {*pids(), *filter(is_alive, killed)}:
        if time.monotonic() > give_up:
            raise TimeoutError(f"processes {sorted(left)} do not end")
        for pid in left - killed:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.add(pid)
        time.sleep(0.02)
    return sorted(killed)


def holds_any(pid: int, paths: set[str]) -> set[str]:
    """Which of `paths` the process has open or mapped.

    Descriptors are read before mappings: a file that is closed in between because it has been mapped is still seen.
    """
    held: set[str] = set()
    try:
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            try:
                held.add(os.readlink(descriptor.path))
            except OSError:
                continue
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                held.add(line.rstrip("\n").partition("/")[1] + line.rstrip("\n").partition("/")[2])
    except OSError:
        pass
    return held & paths
