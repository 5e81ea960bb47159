"""A request from its arrival until it is a stream: it can end at any time, whatever it waits for.

Parsing, tokenizing and the check of a guide cannot be stopped in the middle. They need not be: the answer is sent
without them, and whoever comes out of them finds that nobody waits any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from inflight.errors import RequestError, cancelled, unavailable
from inflight.identity import Identity
from inflight.serving.delivery import Responder


class Arrival:
    """Ends once: handed over to a stream (`hand_over`), or answered with an error (`end` and its like). Thread-safe."""

    __slots__ = (
        "_left",
        "_lock",
        "_refuse",
        "_responder",
        "arrival_ns",
        "closed",
        "deadline",
        "identity",
        "waits",
        "warmup",
    )

    def __init__(
        self,
        identity: Identity,
        responder: Responder,
        refuse: Callable[[Responder, RequestError, Identity, int], None],
        arrival_ns: int,
        deadline_ms: int = 0,
        warmup: bool = False,
    ) -> None:
        """`refuse` answers a request that arrived then with an error; `arrival_ns` is monotonic; `deadline_ms` 0 is
        none.
        """
        self.identity = identity
        self.arrival_ns = arrival_ns
        self.deadline = arrival_ns / 1e9 + deadline_ms / 1000 if deadline_ms else None
        self.warmup = warmup
        self.closed = False
        self.waits = "it was parsed"  # completes "the deadline passed while …"
        self._refuse = refuse
        self._left: Callable[[], object] = _nothing
        # Dropped with the end: Triton's sender keeps its model loaded for as long as anybody refers to it.
        self._responder: Responder | None = responder
        self._lock = threading.Lock()  # spans every use of the responder

    def hand_over(self) -> Responder | None:
        """The responder, which is the stream's from now on; None when the request has ended."""
        with self._lock:
            return self._close()[0]

    def end(self, error: RequestError) -> bool:
        """Answer with an error; false when the request had ended before."""
        with self._lock:
            responder, left = self._close()
        if responder is None:
            return False
        self._refuse(responder, error, self.identity, self.arrival_ns)
        left()
        return True

    def end_by_deadline(self) -> None:
        """Its deadline has passed."""
        self.end(unavailable(f"the deadline passed while {self.waits}; raise deadline_ms, or the request's timeout"))

    def poll_cancelled(self) -> bool:
        """Ask Triton whether the client has left, and end the request if so; whether it has ended."""
        with self._lock:
            if self._responder is None:
                return True
            if not self._responder.is_cancelled():
                return False
        self.end(cancelled())
        return True

    def when_left(self, callback: Callable[[], object]) -> None:
        """Call back when it is answered with an error from elsewhere; at once when that has happened."""
        with self._lock:
            if not self.closed:
                self._left = callback
                return
        callback()

    def _close(self) -> tuple[Responder | None, Callable[[], object]]:
        found = self._responder, self._left
        self.closed, self._responder, self._left = True, None, _nothing
        return found


def _nothing() -> None:
    return None
