"""A port that says how a server is: for Kubernetes, for Envoy, for HAProxy's checks and its agent.

    GET /live, /health/live      200 or 503: whether starting it again would gain nothing
    GET /ready, /health/ready    200 or 503: whether to send requests here; the reason is in the JSON
    GET /ready/NAME              the same of one model
    agent                        not HTTP, a bare line (HAProxy's `agent-send "agent\n"`): `up ready`, `drain` or `down`

`HealthServer` runs it in a thread of its own, `serve_health` in the caller's. What is answered was found out before, so
that an answer takes no longer than its connection; each connection is good for one, and is bounded in time and size.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
import urllib.parse

from inflight.control.watch import Watch

log = logging.getLogger("inflight.health")

MAX_CONNECTIONS = 256
MAX_HEAD_BYTES = 8192
REQUEST_S = 2.0  # what a client may take to say what it wants, and to read the answer
START_S = 5.0
LIVE = ("/live", "/health/live")
READY = ("/ready", "/health/ready")
_PHRASES = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)


async def serve_health(listener: socket.socket, watch: Watch) -> None:
    """Watch and answer until it is cancelled."""
    door = _Door(watch)
    server = await asyncio.start_server(door.serve, sock=listener, limit=MAX_HEAD_BYTES)
    async with server:
        await watch.run()


class HealthServer:
    """The same in thread `inflight-health`."""

    def __init__(self, listener: socket.socket, watch: Watch) -> None:
        """Nothing is answered before `start`."""
        self.watch = watch
        self._listener = listener
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inflight-health", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()
        self._begun.wait(START_S)

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread and close the port."""
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # it has ended in the meantime
                self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(timeout_s)
        self._listener.close()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            try:
                asyncio.run(self._serve())  # ends what is still asked, too
            except Exception:
                log.exception("health is not answered any more")
            finally:
                self._begun.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(serve_health(self._listener, self.watch))
        self._begun.set()
        await self._task


class _Door:
    """One connection after another, some at a time."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one question, answer it, and hang up."""
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                await asyncio.wait_for(self._converse(reader, writer), REQUEST_S)
        except (asyncio.TimeoutError, OSError, EOFError, asyncio.LimitOverrunError):
            pass  # it said nothing that could be answered
        except Exception:
            log.exception("a question about health was not answered")
        finally:
            self._open -= 1
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readuntil(b"\n")
        if first.strip() == b"agent":
            writer.write(self._watch.verdict().agent_line().encode() + b"\n")
        else:
            line = first
            while line.strip():
                line = await reader.readuntil(b"\n")
            writer.write(self._answer(first.decode("latin-1").split()))
        await writer.drain()

    def _answer(self, request: list[str]) -> bytes:
        """The answer to `METHOD PATH VERSION`."""
        method, target = request[:2] if len(request) >= 2 else ("", "")
        status, content = (
            self._look_up(urllib.parse.unquote(target.partition("?")[0]))
            if method in ("GET", "HEAD")
            else (
                405,
                {"error": "health is asked for with GET"},
            )
        )
        body = json.dumps(content).encode() + b"\n"
        head = (
            f"HTTP/1.1 {status} {_PHRASES[status]}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == "HEAD" else body)

    def _look_up(self, path: str) -> tuple[int, dict[str, object]]:
        verdict = self._watch.verdict()
        if path in LIVE:
            return 200 if verdict.live else 503, {
                "live": verdict.live,
                "reason": "" if verdict.live else verdict.reason,
            }
        if path in READY:
            return 200 if verdict.ready else 503, verdict.as_json()
        for prefix in READY:
            model = verdict.models.get(path.removeprefix(f"{prefix}/"))
            if path.startswith(f"{prefix}/"):
                if model is None:
                    return 404, {"ready": False, "reason": "there is no such model", "models": [*verdict.models]}
                return 200 if model.ready else 503, {
                    "ready": model.ready,
                    "health": model.health,
                    "reason": model.reason,
                }
        return 404, {"error": f"there is no {path} here: known are {', '.join([*LIVE, *READY])}"}
