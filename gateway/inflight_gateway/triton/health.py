"""What a server's own port of health says: whether to send it requests, which knows of drains and engines that restart.

Triton's own readiness knows neither. Where that port does not answer, or in another form, it counts for nothing and
Triton's own readiness alone counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import msgspec

EVERY_S = 0.5
ASK_S = 1.0
STALE_S = 3.0  # after which what was heard counts no more
MOST_BYTES = 1 << 16


class _OfModel(msgspec.Struct):
    ready: bool


class _Verdict(msgspec.Struct):
    ready: bool
    reason: str = ""
    models: dict[str, _OfModel] = {}


class ServerHealth:
    """Asks one port of health again and again. `watch` belongs to the gateway's event loop."""

    def __init__(self, address: str) -> None:
        """`address`: host:port. Raises `ValueError` for what is none."""
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
            raise ValueError(f"{address!r} is not HOST:PORT")
        self._address = address
        self._host, self._port = host.strip("[]"), int(port)
        self._verdict = _Verdict(True)
        self._heard: float | None = None

    def reason(self, model: str = "") -> str:
        """Why no request to that model of Triton's should go there, without a name to any of them; empty where it is
        ready, or nothing is known.
        """
        if self._heard is None or time.monotonic() - self._heard > STALE_S or self._verdict.ready:
            return ""
        known = self._verdict.models.get(model)
        if known is not None and known.ready:
            return ""
        return self._verdict.reason or "the server's health says that it is not ready"

    async def watch(self) -> None:
        """Ask until it is cancelled."""
        while True:
            await self.ask()
            await asyncio.sleep(EVERY_S)

    async def ask(self) -> None:
        """Ask once."""
        asked = time.monotonic()
        try:
            verdict = await asyncio.wait_for(self._asked(), ASK_S)
        except asyncio.TimeoutError:
            return  # what it said before counts for a moment more
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            self._heard = None
        else:
            self._verdict, self._heard = verdict, asked

    async def _asked(self) -> _Verdict:
        """Raises OSError, EOFError and ValueError where nobody answers, or in another form."""
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=MOST_BYTES)
        try:
            writer.write(f"GET /ready HTTP/1.1\r\nHost: {self._address}\r\nConnection: close\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if head.split(b" ", 2)[1] not in (b"200", b"503"):
                raise ValueError("that is no answer about health")
            lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            size = int(lengths[0]) if lengths else 0
            if not 0 < size <= MOST_BYTES:
                raise ValueError("an answer about health is short")
            return msgspec.json.decode(await reader.readexactly(size), type=_Verdict)
        except IndexError:
            raise ValueError("that is no HTTP") from None
        finally:
            with contextlib.suppress(OSError):
                writer.transport.abort()
