"""Whether tritonserver's own threads have come to rest, read from /proc. It goes when no
supported release has the fault of Triton 24.10 that it works around (docs/operating.md; `refusals` uses it).

Nothing in Triton's interface says when the thread that handed a request over is done with it. Being asleep since then
says it: such a thread sleeps only when it waits for its next event.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

ASLEEP = b"S"  # waits for an event; every other state has something to do, or waits for a core, a page or a debugger
MOST_KEPT = 256  # files of threads that stay open
_BEGINNING = 64  # bytes of such a file: number, name of at most 16, state


class ThreadStates:
    """The state of each thread of a process, as proc(5) abbreviates it. Used by one thread.

    Their files stay open from look to look: opening them is most of the work, and takes the interpreter lock three
    times for each, in a process whose other threads serve.
    """

    def __init__(self, pid: int) -> None:
        self._folder = f"/proc/{pid}/task"
        self._files: dict[str, int] = {}  # descriptors, by the thread's number

    def read(self) -> dict[int, bytes]:
        """By thread; empty when nothing can be read."""
        try:
            names = os.listdir(self._folder)
        except OSError:
            self.close()
            return {}
        for name in self._files.keys() - names:
            os.close(self._files.pop(name))
        states = {}
        for name in names:
            stat = self._stat(name)
            if stat:
                states[int(name)] = stat[stat.rindex(b")") + 2 :][:1]  # the name before it may hold anything
        return states

    def _stat(self, name: str) -> bytes:
        """The beginning of a thread's file; empty when the thread has ended meanwhile."""
        file = self._files.get(name)
        try:
            if file is None:
                file = os.open(f"{self._folder}/{name}/stat", os.O_RDONLY | os.O_CLOEXEC)
                if len(self._files) >= MOST_KEPT:
                    try:
                        return os.pread(file, _BEGINNING, 0)
                    finally:
                        os.close(file)
                self._files[name] = file
            return os.pread(file, _BEGINNING, 0)
        except OSError:
            if name in self._files:  # its number may be another thread's by the next look
                os.close(self._files.pop(name))
            return b""

    def close(self) -> None:
        """Close every file."""
        while self._files:
            os.close(self._files.popitem()[1])


class FrontEnd:
    """When each thread of the server was last seen asleep. Used by one thread."""

    def __init__(self, pid: int) -> None:
        self._states = ThreadStates(pid)
        self._asleep_ns: dict[int, int] = {}  # monotonic, by thread; 0 is never

    def look(self) -> None:
        """Read the states of all threads: half a millisecond's work for sixty."""
        self.saw(self._states.read(), time.monotonic_ns())

    def close(self) -> None:
        """Close every file that looks keep open; a further look opens them again."""
        self._states.close()

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
