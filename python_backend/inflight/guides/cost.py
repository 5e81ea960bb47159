"""What a guide may cost, and whether it does: in processor time, because how busy the machine is says nothing about a
guide.

Processor time grows as well where others use the same cores and caches (by a third on two cores with three times as
much to do), so a cost that is only somewhat too high counts on a machine that was quiet meanwhile.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import time
from collections.abc import Callable
from pathlib import Path

VOCABULARY = 50_000  # tokens for which the limits are meant: a compiler looks at every token for every state
WALL_FACTOR = 4  # on a busy machine a check may take so many times longer by the clock than it may compute
WAITED = 1.25  # time by the clock over processor time from which on it had to wait for a processor
BUSY = 0.5  # share of all processors that others used
DOUBT = 2.0  # no machine is so busy that the same work takes more than so many times the processor time
_TICKS = os.sysconf("SC_CLK_TCK")


class Cost(enum.Enum):
    """What is known about a cost."""

    FINE = "fine"
    UNKNOWN = "unknown"  # above the limit, on a machine too busy to tell
    TOO_HIGH = "too high"


@dataclasses.dataclass(frozen=True, slots=True)
class Spent:
    """Processor time and time by the clock, in seconds, and the share of all processors that others had, 0 to 1."""

    used_s: float
    wall_s: float
    others: float


class Meter:
    """Measures work from now on; `used_s` tells the processor time of whoever does it."""

    def __init__(self, used_s: Callable[[], float]) -> None:
        self._used_s = used_s
        self._began = time.monotonic(), used_s(), *_machine_s()

    def spent(self) -> Spent:
        """Since the beginning."""
        wall, used, busy, total = self._began
        busy_now, total_now = _machine_s()
        spent = self._used_s() - used
        share = (busy_now - busy - spent) / (total_now - total) if total_now > total else 0.0
        return Spent(spent, time.monotonic() - wall, min(max(share, 0.0), 1.0))


def judge(spent: Spent, limit_s: float) -> Cost:
    """Whether that is within `limit_s` seconds of processor time."""
    if spent.used_s <= limit_s:
        return Cost.FINE
    quiet = spent.wall_s <= WAITED * spent.used_s and spent.others <= BUSY
    return Cost.TOO_HIGH if quiet or spent.used_s > DOUBT * limit_s else Cost.UNKNOWN


def scaled(limit_s: float, vocab_size: int, most_s: float) -> float:
    """The limit for a vocabulary, up to `most_s`. A smaller one than `VOCABULARY` does not lower it."""
    return max(limit_s, min(limit_s * vocab_size / VOCABULARY, most_s))


def _machine_s() -> tuple[float, float]:
    """(busy, total) seconds of all processors since the machine was started; zeros where it does not tell."""
    try:
        line = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0]
        user, nice, system, idle, iowait, irq, softirq, steal = (int(ticks) / _TICKS for ticks in line.split()[1:9])
    except (OSError, ValueError):
        return 0.0, 0.0
    busy = user + nice + system + irq + softirq + steal
    return busy, busy + idle + iowait
