"""The processors that are there for a server, of which its launcher may leave one process fewer for a while.

`inflight serve` keeps Triton and the backend's process on as few processors as their work needs, since to wake a thread
on another one costs several times as much (scripts/inflight_tools/server/gather.py). What computes gets all of them.
"""

from __future__ import annotations

import contextlib
import os

VARIABLE = "INFLIGHT_PROCESSORS"  # the server's, as the launcher found them: numbers with commas


def there() -> frozenset[int]:
    """The processors that the server has, whatever this process may use now."""
    numbers = os.environ.get(VARIABLE, "").split(",")
    if all(number.isdecimal() for number in numbers):
        return frozenset(map(int, numbers))
    return frozenset(os.sched_getaffinity(0))


def take_all() -> None:
    """For a process that computes: use every one of them, whatever the process that started it may use now."""
    if os.environ.get(VARIABLE):
        with contextlib.suppress(OSError):  # none of them is there any more: what we have is what there is
            os.sched_setaffinity(0, there())
