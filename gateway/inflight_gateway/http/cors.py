"""Pages of other origins may ask, where the operator names their origins: CORS, around everything else.

Pure ASGI. A preflight carries no key and needs none; an answer of any status says that the page may read it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, MutableMapping
from typing import Any

from inflight_gateway.http.exchange import Receive, Scope, Send
from inflight_gateway.http.front import Front

_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,2000}")
_SHOWN = b"x-request-id, retry-after, x-inflight-ignored, x-inflight-relaxed, www-authenticate"
_MAX_AGE_S = b"600"


class Cors:
    """The gateway, for pages of some origins."""

    def __init__(self, front: Front, origins: Collection[str]) -> None:
        """`origins`: as browsers send them; `*` is every one."""
        self._front = front
        self._any = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        given = dict(scope["headers"]) if scope["type"] == "http" else {}
        origin = given.get(b"origin")
        if origin is None or not (self._any or origin in self._origins):
            await self._front(scope, receive, send)
            return
        allowed = [(b"access-control-allow-origin", b"*" if self._any else origin), (b"vary", b"origin")]
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in given:
            await _preflight(given, allowed, send)
            return

        async def told(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                shown = [*allowed, (b"access-control-expose-headers", _SHOWN)]
                message = {**message, "headers": [*message["headers"], *shown]}
            await send(message)

        await self._front(scope, receive, told)


async def _preflight(given: dict[bytes, bytes], allowed: list[tuple[bytes, bytes]], send: Send) -> None:
    headers = [*allowed, (b"access-control-allow-methods", b"GET, POST"), (b"access-control-max-age", _MAX_AGE_S)]
    wanted = given.get(b"access-control-request-headers", b"")
    if _NAMES.fullmatch(wanted):
        headers.append((b"access-control-allow-headers", wanted))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
