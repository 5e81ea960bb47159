"""The backend's end of the socket to one engine process.

Thread `inflight-engine-reader` (one per link, started here) always drains the socket, so that a full pipe never stalls
the engine. Sending is done by the dispatcher alone.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from typing import Protocol

from inflight import frames

log = logging.getLogger("inflight.engine")

SEND_TIMEOUT_S = 5.0
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

    def __init__(self, connection: socket.socket, buffer: frames.FrameBuffer, handler: LinkHandler) -> None:
        self._socket = connection
        self._socket.settimeout(SEND_TIMEOUT_S)
        self._buffer = buffer
        self._handler = handler
        self.lost = threading.Event()
        self._thread = threading.Thread(target=self._read, name="inflight-engine-reader", daemon=True)

    def start(self) -> None:
        """Start reading."""
        self._thread.start()

    def send(self, message: frames.ToEngine) -> None:
        """Raises `LinkLost` when the engine is gone or does not read for `SEND_TIMEOUT_S`."""
        if self.lost.is_set():
            raise LinkLost
        try:
            self._socket.sendall(frames.encode(message))
        except OSError as error:
            self.lost.set()
            raise LinkLost(str(error)) from None

    def close(self) -> None:
        """End the reader and the connection."""
        self.lost.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(SEND_TIMEOUT_S)
        self._socket.close()

    def _read(self) -> None:
        try:
            while not self.lost.is_set():
                try:
                    data = self._socket.recv(RECEIVE_BYTES)
                except TimeoutError:
                    continue
                if not data:
                    break
                for body in self._buffer.feed(data):
                    self._dispatch(frames.decode_from_engine(body))
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
            raise frames.FrameError(f"unexpected message {type(message).__name__}")
