"""An engine that misbehaves: what it does wrong for a request stands in that request's `cache_salt`.

Everybody else gets letters, as from `FakeEngine`; that they notice nothing is the worker's and the backend's business.
"""

from __future__ import annotations

import concurrent.futures
import errno
from collections.abc import Callable
from typing import Any

import numpy as np

from inflight.engines.base import (
    EngineBroken,
    EngineInfo,
    EngineOutput,
    EngineRefusal,
    EngineRequest,
    EngineStats,
    FinishReason,
)

# What `add` raises, and how its request has to end (`inflight_requests_total`'s words).
RAISED: dict[str, tuple[Callable[[], Exception], str]] = {
    "refusal": (lambda: EngineRefusal("is too much", "min_p"), "invalid"),
    "name too long": (lambda: OSError(errno.ENAMETOOLONG, "File name too long", "/models/lora"), "unavailable"),
    "disk full": (lambda: OSError(errno.ENOSPC, "No space left on device"), "unavailable"),
    "time-out": (TimeoutError, "unavailable"),
    "time-out of a future": (concurrent.futures.TimeoutError, "unavailable"),
    "memory": (MemoryError, "unavailable"),
    "end of file": (lambda: EOFError("No data left in file"), "internal"),
    "value": (lambda: ValueError("Cannot load file containing pickled data"), "internal"),
    "key": (lambda: KeyError("red"), "internal"),
    "runtime": (lambda: RuntimeError("/opt/x/y.cpp:12: 0x7f0000001234 is wrong\nat z"), "internal"),
    "assertion": (AssertionError, "internal"),
}
# What else goes wrong for a request, and how it has to end; "" is as if nothing were.
FAULTS = {
    **{name: outcome for name, (_, outcome) in RAISED.items()},
    "half added": "internal",
    "error": "internal",
    "huge": "internal",
    "wrong type": "internal",
    "ends twice": "",
    "speaks after its end": "",
    "speaks of others": "",
    "speaks of sequences it has not": "",
    "cancel raises": "",
    "statistics raise": "",
    "statistics lie": "",
    "slow": "",
    "forgotten": "internal",
}
UNKNOWN = (0, -1, 10**6)  # ids that no request has
HUGE = 20_000  # tokens


class MisbehavingEngine:
    """See the module's text. `letters` are the tokens of an answer, over and over."""

    def __init__(self, info: EngineInfo, letters: tuple[int, ...]) -> None:
        self.info = info
        self.letters = letters
        self.requests: dict[int, EngineRequest] = {}
        self.made: dict[tuple[int, int], int] = {}  # (request id, sequence) → tokens, of those that have not ended
        self.cancelled: set[int] = set()
        self.breaks_in = ""  # add, cancel, step or stats: its next call breaks the engine
        self.closed = False
        self.pauses = 0  # steps in which nothing comes
        self.takes_time: Callable[[], None] = lambda: None  # to add a slow request

    def fault_of(self, request_id: int) -> str:
        """What goes wrong for a request."""
        request = self.requests.get(request_id)
        return (request.cache_salt or "") if request is not None else ""

    def _may_break(self, where: str) -> None:
        if self.breaks_in == where:
            raise RuntimeError("CUDA error: an illegal memory access") if where == "step" else EngineBroken("it broke")

    def add(self, request: EngineRequest) -> None:
        """Raises of all kinds."""
        self._may_break("add")
        fault = request.cache_salt or ""
        if fault in RAISED:
            raise RAISED[fault][0]()
        if fault == "slow":
            self.takes_time()
        self.requests[request.request_id] = request
        for index in range(request.sampling.num_sequences):
            self.made[request.request_id, index] = 0
            if fault == "half added":
                raise RuntimeError("the second of its sequences cannot be added")
        if fault == "forgotten":
            self._forget(request.request_id)

    def cancel(self, request_id: int) -> None:
        """May raise, and change nothing then."""
        self._may_break("cancel")
        if self.fault_of(request_id) == "cancel raises":
            raise KeyError(request_id)
        if request_id in self.requests:
            self.cancelled.add(request_id)

    def step(self, timeout_s: float) -> list[EngineOutput]:
        """One token for each sequence, and whatever goes wrong."""
        self._may_break("step")
        outputs: list[EngineOutput] = []
        if self.pauses:
            self.pauses -= 1
            return outputs
        for request_id, index in list(self.made):
            if request_id in self.cancelled:
                outputs.append(EngineOutput(request_id, index, [], FinishReason.CANCELLED))
                self._leave(request_id, index)
            else:
                self._go_on(request_id, index, outputs)
        return outputs

    def _go_on(self, request_id: int, index: int, outputs: list[EngineOutput]) -> None:
        fault = self.fault_of(request_id)
        place = self.made[request_id, index] = self.made[request_id, index] + 1
        token: Any = self.letters[place % len(self.letters)]
        last = place >= self.requests[request_id].sampling.max_tokens
        finish = FinishReason.LENGTH if last else None
        if fault == "speaks of others":
            outputs += [EngineOutput(other, 0, [token], finish) for other in UNKNOWN]
        if fault == "speaks of sequences it has not":
            outputs += [EngineOutput(request_id, other, [token], finish) for other in (-1, 2, 63, 10**9)]
        if fault == "error" and place == 2:
            outputs.append(EngineOutput(request_id, index, [], error="it could not be computed"))
            self._leave(request_id, index)
            return
        tokens = [token]
        if place == 2 and fault == "huge":
            tokens = [token] * HUGE
        if place == 2 and fault == "wrong type":
            tokens = [np.int64(token)]
        outputs.append(EngineOutput(request_id, index, tokens, finish))
        if last:
            if fault == "ends twice":
                outputs.append(EngineOutput(request_id, index, [token], FinishReason.STOP))
            if fault == "speaks after its end":
                outputs += [EngineOutput(request_id, index, [token]), EngineOutput(request_id, index, [], error="no")]
            self._leave(request_id, index)

    def _leave(self, request_id: int, index: int) -> None:
        del self.made[request_id, index]
        if not any(other == request_id for other, _ in self.made):
            self._forget(request_id)

    def _forget(self, request_id: int) -> None:
        self.requests.pop(request_id, None)
        self.cancelled.discard(request_id)
        self.made = {key: count for key, count in self.made.items() if key[0] != request_id}

    def stats(self) -> EngineStats:
        """May raise, or hold what cannot be sent."""
        self._may_break("stats")
        faults = {self.fault_of(request_id) for request_id in self.requests}
        if "statistics raise" in faults:
            raise ZeroDivisionError
        used: Any = np.int64(3) if "statistics lie" in faults else len(self.made)
        return EngineStats(blocks_used=used, blocks_max=self.info.blocks_total or 12)

    def close(self) -> None:
        """Nothing to free."""
        self.closed = True
