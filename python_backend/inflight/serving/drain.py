"""The phases of a drain, and what readiness is made of. Pure: the time is given, nothing waits here.

serving ─order─▶ notice ─▶ refusing ─▶ drained
   ▲                │          │          │
   └────────────── undo ───────┴──────────┘

A balancer that hears of a drain needs a moment to look elsewhere, and a server that refuses at once is the fastest one
of its fleet, so that it gets more requests, not fewer. Therefore readiness goes first, and everything is served until
the notice is over.
"""

from __future__ import annotations

import dataclasses
import enum
import threading


class Phase(enum.Enum):
    """How far a drain is."""

    SERVING = "serving"
    NOTICE = "notice"  # not ready, and everything is served
    REFUSING = "refusing"  # what has begun may finish
    DRAINED = "drained"  # what had not finished by then has been ended


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """One drain. Times are monotonic, in seconds."""

    number: int
    refuse_at: float
    end_at: float
    drained: bool = False


class Drain:
    """The one drain of a model that may be under way. Methods may be called from any thread and never block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plan: _Plan | None = None  # replaced as a whole, so that it is read without the lock
        self._number = 0

    def order(self, now: float, notice_s: float, limit_s: float) -> int:
        """Leave: refuse after `notice_s`, end what is left `limit_s` later. Returns the number of the drain.

        Of several orders the shortest notice and the last limit count.
        """
        with self._lock:
            plan, refuse_at = self._plan, now + notice_s
            if plan is None:
                self._number += 1
            else:
                refuse_at = min(refuse_at, plan.refuse_at)
            drained = plan is not None and plan.drained
            self._plan = _Plan(self._number, refuse_at, max(now, refuse_at) + limit_s, drained)
            return self._number

    def undo(self) -> bool:
        """Serve again; whether there was a drain."""
        with self._lock:
            plan, self._plan = self._plan, None
            return plan is not None

    def finish(self, number: int) -> bool:
        """Nothing is left of this drain; false when it has been undone."""
        with self._lock:
            plan = self._plan
            if plan is None or plan.number != number:
                return False
            self._plan = dataclasses.replace(plan, drained=True)
            return True

    def is_on(self, number: int) -> bool:
        """Whether this drain has not been undone."""
        plan = self._plan
        return plan is not None and plan.number == number

    def phase(self, now: float) -> Phase:
        """How far it is."""
        plan = self._plan
        if plan is None:
            return Phase.SERVING
        if plan.drained:
            return Phase.DRAINED
        return Phase.NOTICE if now < plan.refuse_at else Phase.REFUSING

    def refuses(self, now: float) -> bool:
        """Whether a request that comes now is too late."""
        plan = self._plan
        return plan is not None and now >= plan.refuse_at

    def notice_left(self, now: float) -> float:
        """Seconds for which everything is still served."""
        plan = self._plan
        return 0.0 if plan is None else max(0.0, plan.refuse_at - now)

    def time_left(self, now: float) -> float:
        """Seconds until what is still under way is ended."""
        plan = self._plan
        return 0.0 if plan is None else max(0.0, plan.end_at - now)


@dataclasses.dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a balancer should send requests here. `state` is one word, `reason` a sentence without its end, or ''."""

    ready: bool
    state: str
    reason: str
    phase: Phase


def judge(engine: str, engine_reason: str, phase: Phase, notice_left_s: float, full: str | None) -> Readiness:
    """One answer out of what the engine's supervisor says (`engine` is its word, `ready` when all is well), how far a
    drain is, and why the queue takes no more.
    """
    if engine != "ready":
        return Readiness(False, engine, engine_reason or f"the engine is {engine}", phase)
    if phase is Phase.NOTICE:
        return Readiness(
            False, "draining", f"the model is to be drained; it serves for {notice_left_s:.1f} s more", phase
        )
    if phase is Phase.REFUSING:
        return Readiness(False, "draining", "the model is draining; what has begun may finish", phase)
    if phase is Phase.DRAINED:
        return Readiness(False, "drained", "the model has been drained; inflight undrain takes that back", phase)
    if full is not None:
        return Readiness(False, "full", full, phase)
    return Readiness(True, "ready", "", phase)
