"""What an exception out of an engine means: the end of one request, or of the engine. Decided here and nowhere else.

What one request brings ends that request. Only what shows the engine itself to be broken ends the engine, because that
ends everybody's requests.

| out of | `EngineRefusal` | `EngineBroken` | what the machine lacks (memory, disk, files, time) | anything else |
|---|---|---|---|---|
| `add` | its request: INVALID_ARG | the engine | its request: UNAVAILABLE | its request: INTERNAL |
| `cancel`, `stats` | nobody | the engine | nobody | nobody |
| `step` | the engine | the engine | the engine | the engine |

A step works for all requests at once, so nobody outside can tell whom its exception concerns. An engine that can tell
says it by an output with an `error`, and asks `concerns_one_request` about what it caught. A request whose cancel
failed ends by itself, or is given up (`engine_process/roster.py`).
"""

from __future__ import annotations

import concurrent.futures
import logging
import re
import time
from collections.abc import Callable

from inflight.engines.base import EngineBroken, EngineRefusal
from inflight.errors import ErrorCode, RequestError, sendable

log = logging.getLogger("inflight.engine_worker")

LOG_EVERY_S = 10.0
MOST_WORDS = 1000

# The machine's trouble of the moment, not the request's. (The two time-outs are one class from Python 3.11 on.)
_LACKS = (MemoryError, OSError, TimeoutError, concurrent.futures.TimeoutError)

_PATH = re.compile(r"(?<![\w/.])/[\w.+@-]+(?:/[\w.+@-]*)+")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")


def end_of_add(error: Exception) -> RequestError:
    """How the request ends whose `add` raised `error`. Raises `EngineBroken` where that ends the engine.

    INTERNAL comes without words: the backend knows the client's own id of the request and says that alone.
    """
    if isinstance(error, EngineBroken):
        raise error
    if isinstance(error, EngineRefusal):
        return RequestError(ErrorCode.INVALID_ARG, fit_for_clients(str(error)), error.parameter)
    if isinstance(error, _LACKS):
        lacks = "the engine lacks memory, disk space or time for this request at the moment; try again later"
        return RequestError(ErrorCode.UNAVAILABLE, lacks)
    return RequestError(ErrorCode.INTERNAL, "")


def concerns_one_request(error: Exception, request_id: int) -> None:
    """Called with what was raised by something that `step` did for one request: that request ends with an `error`.

    Raises `EngineBroken` where the engine ends. Called while the exception is being handled.
    """
    if isinstance(error, EngineBroken):
        raise error
    sparingly.exception("one request in a step", "request %d of the engine ends: its step failed", request_id)


def fit_for_clients(words: str) -> str:
    """An engine's sentence without what is none of a client's business: lines after the first, paths, addresses."""
    line = next((line.strip() for line in words.splitlines() if line.strip()), "cannot be computed")
    return sendable(_ADDRESS.sub("…", _PATH.sub("…", line))[:MOST_WORDS])


class Sparingly:
    """A log that nobody can flood: of each kind one entry in `every_s` seconds, which says how many it stands for.

    Kinds are a few words of ours, never a request's. For one thread.
    """

    def __init__(self, every_s: float = LOG_EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = every_s
        self._clock = clock
        self._next: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def warning(self, kind: str, message: str, *arguments: object) -> None:
        """One line."""
        if self._may_write(kind):
            log.warning("%s%s", message % arguments, self._left_out_of(kind))

    def exception(self, kind: str, message: str, *arguments: object) -> None:
        """One line and the traceback of the exception that is being handled."""
        if self._may_write(kind):
            log.exception("%s%s", message % arguments, self._left_out_of(kind))

    def _may_write(self, kind: str) -> bool:
        now = self._clock()
        if now < self._next.get(kind, now):
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        self._next[kind] = now + self._every
        return True

    def _left_out_of(self, kind: str) -> str:
        count = self._left_out.pop(kind, 0)
        return f" ({count} more of this kind since were not written)" if count else ""


sparingly = Sparingly()
