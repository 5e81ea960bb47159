"""The backend's end of the socket to one engine process.

Threads, two per link, started and joined here: `inflight-engine-reader` always drains the socket, so that a full pipe
never stalls the engine; `inflight-engine-writer` waits for an engine that is busy in a long step, so that the
dispatcher never does. Whether an engine that does not read is stalled is the watchdog's to judge alone.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from typing import Protocol

from inflight.engine_process import frames
from inflight.engine_process.framing import FrameBuffer, FrameError

log = logging.getLogger("inflight.engine")

WAIT_S = 1.0  # how long one wait on the socket or the outbox lasts before the link looks whether it is lost
JOIN_S = 5.0
RECEIVE_BYTES = 1 << 18


class LinkHandler(Protocol):
    """Who hears what the engine says. Called on the reader thread; must not block."""

    def on_outputs(self, message: frames.Outputs) -> None:
        """One iteration's outputs."""

    def on_refused(self, message: frames.Refused) -> None:
        """The engine did not take a request."""


class LinkLost(Exception):
    """The engine process cannot be reached any more."""


class EngineLink:
    """One connection to one engine process, from Ready to its loss."""

    def __init__(self, connection: socket.socket, buffer: FrameBuffer, handler: LinkHandler) -> None:
        self._socket = connection
        self._socket.settimeout(WAIT_S)
        # Bounded by what admission lets run: one Add and one Cancel per request.
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._buffer = buffer
        self._handler = handler
        self.lost = threading.Event()
        self.waiting_since: float | None = time.monotonic()  # for the engine's next bytes; None: at work on some
        self._threads = [
            threading.Thread(target=self._read, name="inflight-engine-reader", daemon=True),
            threading.Thread(target=self._write, name="inflight-engine-writer", daemon=True),
        ]

    def start(self) -> None:
        """Start reading and writing."""
        for thread in self._threads:
            thread.start()

    @property
    def is_lost(self) -> bool:
        """Whether the engine cannot be reached any more."""
        return self.lost.is_set()

    @property
    def is_silent(self) -> bool:
        """Whether nothing more can come from the engine: the reader has ended."""
        return not self._threads[0].is_alive()

    def send(self, message: frames.ToEngine) -> None:
        """Hand a message to the writer. Never blocks; raises `LinkLost` when the engine is gone."""
        if self.lost.is_set():
            raise LinkLost
        self._outbox.put(frames.encode(message))

    def close(self) -> None:
        """End the threads and the connection."""
        self.lost.set()
        self._outbox.put(None)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(JOIN_S)
        self._socket.close()

    def _write(self) -> None:
        while not self.lost.is_set():
            try:
                data = self._outbox.get(timeout=WAIT_S)
            except queue.Empty:
                continue
            rest = memoryview(data or b"")
            while rest and not self.lost.is_set():
                try:
                    rest = rest[self._socket.send(rest) :]
                except TimeoutError:
                    continue
                except OSError:
                    self.lost.set()

    def _read(self) -> None:
        try:
            while not self.lost.is_set():
                try:
                    data = self._socket.recv(RECEIVE_BYTES)
                except TimeoutError:
                    continue
                if not data:
                    break
                self.waiting_since = None
                for body in self._buffer.feed(data):
                    self._dispatch(frames.decode_from_engine(body))
                self.waiting_since = time.monotonic()
        except OSError:
            pass
        except Exception:
            log.exception("the engine process sent something that cannot be read; it is taken for lost")
        finally:
            self.lost.set()

    def _dispatch(self, message: frames.FromEngine) -> None:
        if isinstance(message, frames.Outputs):
            self._handler.on_outputs(message)
        elif isinstance(message, frames.Refused):
            self._handler.on_refused(message)
        else:
            raise FrameError(f"unexpected message {type(message).__name__}")
