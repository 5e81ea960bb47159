"""Whether tritonserver's own threads have come to rest, read from /proc. It goes when no
supported release has the fault of Triton 24.10 that it works around (docs/operating.md; `refusals` uses it).

Nothing in Triton's interface says when the thread that handed a request over is done with it. Being asleep since then
says it: such a thread sleeps only when it waits for its next event.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

ASLEEP = b"S"  # waits for an event; every other state has something to do, or waits for a core, a page or a debugger


def read_states(pid: int) -> dict[int, bytes]:
    """The state of each thread of a process, as proc(5) abbreviates it; empty when it cannot be read."""
    states: dict[int, bytes] = {}
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return states
    for thread in threads:
        try:
            stat = (thread / "stat").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        states[int(thread.name)] = stat[stat.rindex(b")") + 2 :][:1]  # the name before it may hold anything
    return states


class FrontEnd:
    """When each thread of the server was last seen asleep. Used by one thread."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._asleep_ns: dict[int, int] = {}  # monotonic, by thread; 0 is never

    def look(self) -> None:
        """Read the states of all threads: a millisecond's work for sixty."""
        self.saw(read_states(self._pid), time.monotonic_ns())

    def saw(self, states: Mapping[int, bytes], now_ns: int) -> None:
        """Take note of what a look has shown."""
        before = self._asleep_ns
        self._asleep_ns = {
            thread: now_ns if state == ASLEEP else before.get(thread, 0) for thread, state in states.items()
        }

    def rested_since(self, since_ns: int) -> bool:
        """Whether every thread of the latest look was seen asleep at `since_ns` (monotonic) or later.

        True where nothing can be read: then nobody need wait.
        """
        return all(asleep_ns >= since_ns for asleep_ns in self._asleep_ns.values())
