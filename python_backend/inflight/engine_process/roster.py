"""Who is in the engine and what it owes them: whatever it says, the backend hears one consistent story. Pure.

    engine.step() ──▶ pass_on ──▶ backend
                          └─ dropped: ids that nobody added, sequences that are not there or have ended

So every sequence ends at most once, an end cannot free the place of another, and nothing follows an end. And every
sequence does end: of a request that was cancelled the ends are made here when the engine gives none (`owed`), and so
are those of requests that the engine has forgotten, once it holds nothing at all and says nothing. A single request
that an engine forgets while it serves others ends by its deadline, or when its client leaves: both cancel it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from inflight.engines.base import EngineOutput, EngineStats, FinishReason

OWED_AFTER_S = 30.0  # a cancelled request that has not ended by then, and after so many steps, never will
OWED_AFTER_STEPS = 20
FORGOTTEN_AFTER_S = 60.0  # an engine with nothing in its KV blocks that has said nothing for so long
FORGOTTEN = "the engine has forgotten this request"


@dataclasses.dataclass(slots=True)
class _Leaving:
    """When a request was cancelled, on the clock and in steps."""

    since: float
    step: int


class Roster:
    """Requests in the engine. Times are seconds on one monotonic clock."""

    def __init__(self) -> None:
        self._open: dict[int, int] = {}  # request id → a bit for each sequence that has not ended
        self._leaving: dict[int, _Leaving] = {}
        self._quiet_since: float | None = None
        self._steps = 0

    def __len__(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._open

    def add(self, request_id: int, sequences: int) -> None:
        """The engine has taken a request of so many sequences."""
        self._open[request_id] = (1 << sequences) - 1
        self._quiet_since = None

    def cancel(self, request_id: int, now: float) -> None:
        """The engine was told to end a request."""
        if request_id in self._open:
            self._leaving.setdefault(request_id, _Leaving(now, self._steps))

    def pass_on(self, outputs: Iterable[EngineOutput]) -> tuple[list[EngineOutput], list[EngineOutput]]:
        """(what the backend should hear of one step, what it should not)."""
        self._steps += 1
        passed, dropped = [], []
        for output in outputs:
            left = self._open.get(output.request_id, 0)
            index = output.sequence_index
            if index < 0 or not left >> index & 1:
                dropped.append(output)
                continue
            if output.finish is not None or output.error is not None:
                self._end(output.request_id, left & ~(1 << index))
            passed.append(output)
        return passed, dropped

    def end(self, request_id: int, index: int) -> None:
        """A sequence has ended, by what is said in the engine's place."""
        self._end(request_id, self._open.get(request_id, 0) & ~(1 << index))

    def _end(self, request_id: int, left: int) -> None:
        if left:
            self._open[request_id] = left
        else:
            self._open.pop(request_id, None)
            self._leaving.pop(request_id, None)

    def owed(self, now: float) -> list[EngineOutput]:
        """The ends that the engine should have given cancelled requests by now. They have ended with that."""
        overdue = [
            request_id
            for request_id, leaving in self._leaving.items()
            if now - leaving.since > OWED_AFTER_S and self._steps - leaving.step > OWED_AFTER_STEPS
        ]
        return [output for request_id in overdue for output in self._ends(request_id, FinishReason.CANCELLED, None)]

    def forgotten(self, now: float, stats: EngineStats, said_something: bool) -> list[EngineOutput]:
        """The ends of all requests, once the engine has held nothing for them for too long. Called after steps;
        `stats` are the engine's, which count no blocks at all (`blocks_max` 0) where it does not know.
        """
        if said_something or not self._open or stats.blocks_used or not stats.blocks_max:
            self._quiet_since = None
            return []
        if self._quiet_since is None:
            self._quiet_since = now
        if now - self._quiet_since <= FORGOTTEN_AFTER_S:
            return []
        return [output for request_id in list(self._open) for output in self._ends(request_id, None, FORGOTTEN)]

    def _ends(self, request_id: int, finish: FinishReason | None, error: str | None) -> list[EngineOutput]:
        left = self._open[request_id]
        indices = [index for index in range(left.bit_length()) if left >> index & 1]
        self._end(request_id, 0)
        return [EngineOutput(request_id, index, [], finish, error) for index in indices]
