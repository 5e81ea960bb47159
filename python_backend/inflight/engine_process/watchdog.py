"""Does the engine process still get anywhere? A shared page says when it last did; a pure watchdog judges it.

The engine's owner thread writes the page before every command, before and after every step and while it waits for work.
It cannot answer a
ping during a step (OpenVINO's `step()` holds the interpreter lock), but a page of memory can always be read.
"""

from __future__ import annotations

import dataclasses
import enum
import mmap
from collections.abc import Mapping
from pathlib import Path

ADD_PATIENCE = 6.0  # stall times that one `add` may take: a minute, by default
IDLE_WAIT_S = 0.25  # how long an engine without work sleeps, which is how often it beats
WATCH_INTERVAL_S = 0.1
LOOK_AFTER_S = 0.5  # without a beat, at what the engine's threads wait for: it costs some reads of small files

_SIZE = 4096


class WorkerState(enum.Enum):
    """What the engine process is doing. While it is SENDING it may have to wait for the backend to read; while it is
    ADDING a request it may have to read an adapter from a disk.
    """

    STARTING = 0
    IDLE = 1
    STEPPING = 2
    SENDING = 3
    ADDING = 4


class StatePage:
    """A memory-mapped file with two 8-byte slots, state and time of the last beat. One process writes, the other reads.

    The slots are written through a memoryview of native 8-byte items, which is one store each: a reader never sees half
    a value. (`struct.pack_into` will not do: it clears the bytes first and then writes them one by one.)
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        with open(path, "x+b" if create else "r+b") as file:
            if create:
                file.truncate(_SIZE)
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self._slots = memoryview(self._map).cast("q")

    def write(self, state: WorkerState, now_ns: int) -> None:
        """Record what is being done since `now_ns` (monotonic)."""
        self._slots[1] = now_ns
        self._slots[0] = state.value

    def read(self) -> tuple[WorkerState, int]:
        """(state, monotonic ns of the last beat; 0 before the first)."""
        return WorkerState(self._slots[0]), self._slots[1]

    def close(self) -> None:
        """Unmap; the file is the owner's to remove."""
        self._slots.release()
        self._map.close()


def beat_of(state: WorkerState, beat_s: float, waiting_since_s: float | None, now_s: float) -> float | None:
    """Since when no progress is the engine's own fault; None while it loads, which has a time-out of its own.

    `beat_s` is its last beat, 0 for none yet. While it is SENDING it may only have to wait for the backend to read, so
    then counts when the backend began to wait for its next bytes (`waiting_since_s`; None: it is at work on some).
    While it is IDLE it may sleep, however short a stall is.
    """
    if state is WorkerState.STARTING or not beat_s:
        return None
    if state is WorkerState.SENDING:
        return now_s if waiting_since_s is None else max(beat_s, waiting_since_s)
    return min(now_s, beat_s + IDLE_WAIT_S) if state is WorkerState.IDLE else beat_s


def patience_with(state: WorkerState, longest_step: float = 0.0) -> float:
    """How many stall times no progress may last in a state, where a step may take `longest_step` of them."""
    if state is WorkerState.STEPPING:
        return max(1.0, longest_step)
    return ADD_PATIENCE if state is WorkerState.ADDING else 1.0


def watch_interval_s(stall_timeout_s: float) -> float:
    """How often to look: a stall has to last for several looks, or nobody could tell what it came from."""
    return min(WATCH_INTERVAL_S, stall_timeout_s / 5)


@dataclasses.dataclass(slots=True)
class Watchdog:
    """Judges the age of the last beat. Time that the watchdog itself did not get is not held against the engine, and
    neither is time that the engine's threads waited for a processor: on a machine with too much to do a step takes
    long, and to start an engine again would only add to it.

    `tick` is called every `interval_s`; when a call comes late, the machine was paused or starved, and the lateness is
    subtracted from the beat's age until the next beat. Times are seconds on one monotonic clock; `last_tick` begins as
    the time when the watching did, because the very first call may come late too.
    """

    stall_timeout_s: float
    interval_s: float
    last_tick: float | None = None
    _beat: float = 0.0
    _forgiven: float = 0.0
    _waits: Mapping[int, int] = dataclasses.field(default_factory=dict)

    def wants_waits(self, now: float, beat: float) -> bool:
        """Whether `tick` should be told `waits`: early enough to know two of them before there is a stall."""
        return now - beat > min(LOOK_AFTER_S, self.stall_timeout_s / 4)

    def tick(self, now: float, beat: float, patience: float = 1.0, waits: Mapping[int, int] | None = None) -> bool:
        """True when the engine has stalled: there was no beat for `patience` times the stall time.

        `waits` are nanoseconds that each of its threads has waited for a processor so far (`cpu_wait`). The threads of
        a step wait for each other, so the one that waited longest counts.
        """
        waits = waits or {}
        passed = 0.0 if self.last_tick is None else now - self.last_tick
        known = waits.keys() & self._waits.keys()
        waited = max((waits[thread] - self._waits[thread] for thread in known), default=0) / 1e9
        self._waits = waits
        late = 0.0 if self.last_tick is None else max(0.0, now - self.last_tick - self.interval_s)
        self.last_tick = now
        if beat != self._beat:
            self._beat, self._forgiven = beat, 0.0
            late = min(late, max(0.0, now - beat))  # lateness before this beat is not the engine's
            waited = 0.0  # of which nobody knows how much came after it
        self._forgiven += max(late, min(waited, passed))
        return now - beat - self._forgiven > self.stall_timeout_s * patience
