"""Keeps a server's front end and backend on as few processors as their work needs.

A response is handed from thread to thread, eight times and more over two processes, and each hand-over wakes the next
thread. To wake a thread on another processor costs several times as much as on one's own, most of all in a virtual
machine, where it takes an exit to the host. Neither the server nor the backend computes anything, so while they use
less than a processor they get one; as soon as they could use more they get it. Engines keep all of them
(inflight/engine_process/processors.py).

Thread `inflight-gather`, started and stopped by `Gathering`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

log = logging.getLogger("inflight.server")

LOOK_S = 0.25
# Of what they may use: then they get twice as much. With an engine beside them they get no more than half.
CROWDED = 0.45
SPARSE = 0.3  # of half of what they may use: then that half is enough
PATIENT_LOOKS = 12  # that have to say so, one after another
NEW_PROCESSES_LOOKS = 8  # how often to look for processes that were not there before
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Width:
    """How many processors are enough. Pure."""

    def __init__(self, most: int) -> None:
        """At first one, at most `most`."""
        self._most = most
        self._sparse = 0
        self.now = 1

    def look(self, used: float) -> int:
        """What is enough after a while in which `used` processors were used."""
        if used > CROWDED * self.now:
            self._sparse = 0
            self.now = min(2 * self.now, self._most)
        elif self.now > 1 and used < SPARSE * -(-self.now // 2):
            self._sparse += 1
            if self._sparse >= PATIENT_LOOKS:
                self._sparse = 0
                self.now = -(-self.now // 2)
        else:
            self._sparse = 0
        return self.now


class Gathering:
    """Looks at what `processes` use and says where they may run."""

    def __init__(self, processes: Callable[[], Iterable[int]], processors: Iterable[int]) -> None:
        """`processors` are those to choose from."""
        self._processes = processes
        self._processors = sorted(processors)
        self._width = Width(len(self._processors))
        self._used: dict[int, float] = {}  # CPU seconds of each process at the last look
        self._placed: dict[int, tuple[int, ...]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inflight-gather", daemon=True)

    def start(self) -> None:
        """Gather them from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Let them run anywhere, and look no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _run(self) -> None:
        looks = 0
        pids: list[int] = []
        while not self._stop.wait(LOOK_S):
            if looks % NEW_PROCESSES_LOOKS == 0:
                pids = list(self._processes())
            looks += 1
            self.look(pids)
        for pid in pids:
            place(pid, self._processors)

    def look(self, pids: Sequence[int]) -> None:
        """One look. What ends or comes meanwhile does no harm."""
        used = {pid: seconds for pid in pids if (seconds := cpu_seconds(pid)) is not None}
        grown = sum(seconds - self._used.get(pid, seconds) for pid, seconds in used.items())
        self._used = used
        wanted = tuple(self._processors[-self._width.look(grown / LOOK_S) :])
        for pid in used:
            if self._placed.get(pid) != wanted:
                place(pid, wanted)
        self._placed = dict.fromkeys(used, wanted)


def place(pid: int, processors: Iterable[int]) -> None:
    """Have every thread of a process run on these processors only; its new threads follow those that start them."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(int(entry.name), processors)


def cpu_seconds(pid: int) -> float | None:
    """User and system time of a process so far; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
