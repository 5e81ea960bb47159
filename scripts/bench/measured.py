"""Figures with their spread, and how quiet the machine was meanwhile."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.quiet import CpuTime

_LIBC = ctypes.CDLL(None)
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37  # <linux/prctl.h>
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Others:
    """The share of the machine (0 … 1) that other programs used while a block of `watched` ran."""

    share = 0.0


@contextmanager
def watched(cpu_of_peer: Any) -> Iterator[Others]:
    """Measure what others use meanwhile; `cpu_of_peer()` gives CPU seconds of what is measured, less this process."""
    others = Others()
    before, theirs, ours = CpuTime.now(), cpu_of_peer(), time.process_time()
    yield others
    used = cpu_of_peer() - theirs + time.process_time() - ours
    others.share = round(CpuTime.now().share_of_others(before, used), 4)


@contextmanager
def watched_tree() -> Iterator[Others]:
    """The same where what is measured starts and ends inside: all that descends from this process is ours, orphans too.

    Those that have ended stay zombies until this process ends, or their time would be lost.
    """
    others = Others()
    with _adopting():
        before, ours = CpuTime.now(), tree_cpu_s(os.getpid())
        yield others
        used = tree_cpu_s(os.getpid()) - ours
        others.share = round(CpuTime.now().share_of_others(before, used), 4)


@contextmanager
def _adopting() -> Iterator[None]:
    """Descendants whose parent ends become children of this process. A killed server leaves stub and engine so."""
    before = ctypes.c_int()
    _LIBC.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


def tree_cpu_s(root: int) -> float:
    """CPU seconds of a process, of all that descend from it, zombies among them, and of those that were waited for."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[pid] = int(fields[1])
        seconds[pid] = sum(map(int, fields[11:15])) / _TICKS_PER_S
    total = 0.0
    for pid in seconds:
        above: int | None = pid
        while above is not None and above != root:
            above = parents.get(above)
        total += seconds[pid] if above == root else 0.0
    return total


def spread(values: Sequence[float], digits: int = 2) -> dict[str, Any]:
    """Median, least and most, and the values themselves."""
    return {
        "median": round(statistics.median(values), digits),
        "least": round(min(values), digits),
        "most": round(max(values), digits),
        "all": [round(value, digits) for value in values],
    }
