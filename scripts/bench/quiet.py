"""Is this machine doing anything else? Figures of a benchmark mean little while other programs use the same cores."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from inflight_tools.common.report import Failure

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_SAMPLE_S = 0.5
_LEAST_PATIENCE_S = 0.01  # a free lock comes in less, though by another thread


@dataclass(frozen=True, slots=True)
class CpuTime:
    """CPU seconds of the whole machine since it started: used by anybody, and there to be used."""

    busy: float
    total: float

    @classmethod
    def now(cls) -> CpuTime:
        """From /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal."""
        with open("/proc/stat", encoding="utf-8") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
        return cls((sum(ticks) - ticks[3] - ticks[4]) / _TICKS_PER_S, sum(ticks) / _TICKS_PER_S)

    def share_of_others(self, since: CpuTime, own_s: float) -> float:
        """Which part of the machine (0 … 1) others have used since then, `own_s` CPU seconds being the benchmark's."""
        total = self.total - since.total
        return max(0.0, self.busy - since.busy - own_s) / total if total else 0.0


def wait_until_quiet(limit: float, patience_s: float) -> bool:
    """Wait until others use less than `limit` (0 … 1) of the machine for a second; False after `patience_s` seconds."""
    give_up = time.monotonic() + patience_s
    quiet = 0
    while True:
        before = CpuTime.now()
        time.sleep(_SAMPLE_S)
        quiet = quiet + 1 if CpuTime.now().share_of_others(before, 0.0) < limit else 0
        if quiet >= 2:
            return True
        if time.monotonic() > give_up:
            return False


@contextmanager
def holding(locks: Sequence[Path], patience_s: float) -> Iterator[None]:
    """Hold these files locked (flock), for several measurements that share a machine and take turns by them.

    They are taken in the order given. Raises `Failure` when that takes longer than `patience_s` seconds.
    """
    give_up = time.monotonic() + patience_s
    with ExitStack() as stack:
        for lock in locks:
            turn = _Turn(lock)
            stack.callback(turn.leave)
            if not turn.came(max(give_up - time.monotonic(), _LEAST_PATIENCE_S)):
                raise Failure(f"--lock: somebody else has held {lock} for {patience_s:g} s.")
        yield


class _Turn:
    """A place in the kernel's queue for a lock, where nobody who came later is first. A thread of its own waits there,
    since that wait has no end; who has left meanwhile gives the lock back as soon as it comes.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._guard = threading.Lock()
        self._ours = threading.Event()
        self._left = False
        threading.Thread(target=self._wait, name="lock", daemon=True).start()

    def came(self, patience_s: float) -> bool:
        """Whether the lock is ours; waits so long for it."""
        return self._ours.wait(patience_s)

    def leave(self) -> None:
        """Give the lock back, or the place in the queue."""
        with self._guard:
            self._left = True
            if self._ours.is_set():
                self._file.close()

    def _wait(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        with self._guard:
            self._ours.set()
            if self._left:
                self._file.close()
