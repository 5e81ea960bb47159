"""Errors as terminal responses, each a little after its request's arrival.

Triton 24.10 can crash when a gRPC stream with the header `triton_grpc_error: true` gets an error while the server's own
thread is still handing the request over; a client could do that at will. So none is sent sooner than 10 ms after the
arrival, nor before every thread of the server has been seen asleep since then: on a busy machine a thread may stand
still for longer. docs/operating.md has the figures.

Thread `inflight-refuse`, started and joined by `Refusals`. It alone sends errors.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from typing import Protocol

from inflight.errors import RequestError
from inflight.identity import Identity
from inflight.serving.front_end import FrontEnd

log = logging.getLogger("inflight.refusals")

LEAST_AGE_NS = 10_000_000
PATIENCE_NS = 250_000_000  # for a thread of the server's that is always busy
LOOK_S = 0.002
IDLE_S = 1.0


class Refuser(Protocol):
    """The part of a responder that errors need."""

    def fail(self, error: RequestError) -> None:
        """Send an error as the one terminal response."""


def answer_error(responder: Refuser, error: RequestError, identity: Identity) -> None:
    """The terminal error of a request. Never raises.

    Tried once: Triton's stub closes a response sender before it looks for shared memory, so a terminal response that
    fails there cannot be sent again.
    """
    try:
        responder.fail(error)
    except Exception:
        log.exception("request %s: Triton does not take its end", identity)


class Refusals:
    """The queue of errors and its thread. Requests arrive in about the order in which they are refused, so a queue will
    do where a heap would be exact.
    """

    def __init__(self) -> None:
        self._front_end = FrontEnd(os.getppid())
        self._queue: queue.SimpleQueue[tuple[Refuser, RequestError, Identity, int] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # nothing is queued behind the thread's end
        self._thread = threading.Thread(target=self._run, name="inflight-refuse", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._front_end.look()
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Send what is left, at once, and end the thread."""
        with self._lock:
            self._stopping.set()
            self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._front_end.close()

    def answer(self, responder: Refuser, error: RequestError, identity: Identity, arrival_ns: int) -> None:
        """End a request with `error`, soon; after `stop` at once. Never raises. `arrival_ns` is monotonic."""
        with self._lock:
            if not self._stopping.is_set():
                self._queue.put((responder, error, identity, arrival_ns + LEAST_AGE_NS))
                return
        answer_error(responder, error, identity)

    def _run(self) -> None:
        while True:
            try:
                entry = self._queue.get(timeout=IDLE_S)
            except queue.Empty:
                continue
            if entry is None:
                return
            responder, error, identity, due_ns = entry
            self._wait(due_ns)
            answer_error(responder, error, identity)
            del entry, responder  # while this thread waits it keeps no request alive

    def _wait(self, due_ns: int) -> None:
        """Until it is `due_ns` and the server has let go of what came before; not once the backend stops."""
        self._stopping.wait(max(0, due_ns - time.monotonic_ns()) / 1e9)
        while not self._front_end.rested_since(due_ns) and time.monotonic_ns() < due_ns + PATIENCE_NS:
            self._front_end.look()
            if not self._front_end.rested_since(due_ns) and self._stopping.wait(LOOK_S):
                return
