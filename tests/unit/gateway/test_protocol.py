"""Connections end, whether or not their clients read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import uvicorn

from inflight_gateway.http.protocol import Connection
from inflight_tools.server.server import Ports


async def much(scope: Any, receive: Any, send: Any) -> None:
    """An answer that no buffer of the system holds."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"30000000")]})
    await send({"type": "http.response.body", "body": b"x" * 30_000_000})


def test_an_answer_that_nobody_fetches_does_not_hold_its_connection() -> None:
    async def act() -> None:
        port = Ports.free().http
        config = uvicorn.Config(
            much, port=port, http=Connection, ws="none", lifespan="off", timeout_keep_alive=1, log_level="error"
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        with contextlib.closing(socket.create_connection(("127.0.0.1", port), 5)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await asyncio.sleep(0.5)
            assert len(server.server_state.connections) == 1
            await asyncio.sleep(3.5)
            assert not server.server_state.connections
        server.should_exit = True
        await serving

    asyncio.run(asyncio.wait_for(act(), 20))
