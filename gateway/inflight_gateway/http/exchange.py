"""One HTTP request: its body within limits, its answer, and whether its client is still there.

`receive` is read by one task at a time: first for the body, then for the client's leaving. A client that does not read
blocks `send`; the gateway's ticker (`front.py`) ends such a request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

from inflight_gateway.core.errors import GatewayError, Kind
from inflight_gateway.http.protocol import ABORT

# ASGI.
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

COMMENT = b": keep-alive\n\n"


class Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.started = False
        self.streaming = False
        self.status = 0
        self.writing_since: float | None = None
        self.last_write = time.monotonic()
        self.task: asyncio.Task[Any] | None = None  # what makes the answer
        self.stalled = False
        self.extra: list[tuple[bytes, bytes]] = []

    async def body(self, most: int, timeout_s: float) -> bytes:
        """The whole body. Raises `GatewayError`."""
        if self.headers.get(b"content-encoding", b"identity") not in (b"", b"identity"):
            raise GatewayError(Kind.ENCODING, "a compressed body is not taken; send it as it is")
        length = self.headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise _too_large(most)
        try:
            return await asyncio.wait_for(self._read(most), timeout_s)
        except asyncio.TimeoutError:
            raise GatewayError(Kind.SLOW_BODY, f"the body did not arrive within {timeout_s:g} s") from None

    async def _read(self, most: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise GatewayError(Kind.CANCELLED, "the client left before its body was whole")
            part = message.get("body", b"")
            size += len(part)
            if size > most:
                raise _too_large(most)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    async def left(self) -> None:
        """Return when the client has left. Only after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def tell(self, headers: Mapping[str, str]) -> None:
        """Add headers to an answer that has not begun."""
        self.extra += [(name.encode(), value.encode()) for name, value in headers.items()]

    async def answer(
        self, status: int, body: bytes, content_type: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        """A whole answer."""
        fields = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *self.extra]
        fields += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        self.started, self.status = True, status
        await self._write({"type": "http.response.start", "status": status, "headers": fields})
        await self._write({"type": "http.response.body", "body": body})

    async def start_stream(self) -> None:
        """The head of an answer that is streamed."""
        fields = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *self.extra,
        ]
        self.started = self.streaming = True
        self.status = 200
        await self._write({"type": "http.response.start", "status": 200, "headers": fields})

    async def write(self, data: bytes, more: bool = True) -> None:
        """A part of a streamed answer."""
        await self._write({"type": "http.response.body", "body": data, "more_body": more})

    def abort(self) -> None:
        """Break the connection off. What waits to be written to a client that does not read would wait for ever."""
        how = (self.scope.get("extensions") or {}).get(ABORT)
        if how is not None:
            how()

    async def _write(self, message: MutableMapping[str, Any]) -> None:
        self.writing_since = time.monotonic()
        await self._send(message)
        self.writing_since = None
        self.last_write = time.monotonic()


def _too_large(most: int) -> GatewayError:
    return GatewayError(Kind.TOO_LARGE, f"the body is larger than the {most} bytes allowed")
