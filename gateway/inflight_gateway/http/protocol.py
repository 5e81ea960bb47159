"""uvicorn's HTTP connection, bounded in what it lacks: the time and the size of a request's head, and what follows an
answer that came before the body was read. An application can also break it off.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

ABORT = "inflight.abort"  # in the scope's extensions: ends the connection, whatever is still to be written
MOST_HEAD_BYTES = 64 << 10
LINGER_S = 5.0  # for which the rest of a body is thrown away, so that its client reads the answer instead of a reset


def _told(status: str, code: str, message: str) -> bytes:
    body = b'{"error":{"message":"%s","type":"invalid_request_error","param":null,"code":"%s"}}' % (
        message.encode(),
        code.encode(),
    )
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close"
    return head.encode() + b"\r\n\r\n" + body


SLOW = _told("408 Request Timeout", "request_timeout", "the head of the request did not arrive in time")
LARGE = _told(
    "431 Request Header Fields Too Large",
    "request_too_large",
    f"the head of the request is larger than the {MOST_HEAD_BYTES} bytes allowed",
)


class Connection(HttpToolsProtocol):
    """Closing waits until everything is written: for ever, where the client does not read. So there is `ABORT`."""

    head_s = 10.0  # from a connection's beginning, or a request's first byte, until its head is whole

    _timer: asyncio.TimerHandle | None = None  # while a head is awaited, or the rest of a body thrown away
    _in_head = False
    _in_body = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A head is awaited from now on."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.head_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, a body, or of both."""
        super().data_received(data)
        if self._in_body or self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._end(LARGE)
                return
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._timer = self.loop.call_later(self.head_s, self._too_slow)

    _unread = 0  # bytes that waited to be written when the client was last looked after

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head = True
        self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._disarm()
        self._in_head, self._in_body, self._head_bytes = False, True, 0
        super().on_headers_complete()
        if sum(len(name) + len(value) for name, value in self.headers) > MOST_HEAD_BYTES:
            self._end(LARGE)
            self.cycle.disconnected = True  # the application hears that there is nobody

    def on_message_complete(self) -> None:
        """The body is whole."""
        self._disarm()
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is written; where its body was not read, the connection is of no use any more."""
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            self._timer = self.loop.call_later(LINGER_S, self.transport.close)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        self._end(SLOW if self._in_head else b"")

    def _end(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            if answer:
                self.transport.write(answer)
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing was asked for a while. An answer of which nothing was fetched in that time is given up."""
        unread = self.transport.get_write_buffer_size()
        if not unread:
            super().timeout_keep_alive_handler()
        elif unread == self._unread:
            self.transport.abort()
        else:
            self._unread = unread
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
