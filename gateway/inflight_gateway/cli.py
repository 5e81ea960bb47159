"""`inflight gateway`: OpenAI's, Anthropic's and TGI's APIs in front of a Triton with Inflight models.

SIGTERM: not ready for the drain's notice while everything is served, then 503 for what is new, then the end; Ctrl-C
leaves the notice out. SIGHUP reads the keys again.
"""

from __future__ import annotations

import inflight_gateway.packages  # noqa: F401 - the others lie where it says

# isort: split
import argparse
import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Sequence
from types import FrameType

import uvicorn

from inflight_gateway import options as told
from inflight_gateway import workers
from inflight_gateway.http.answers import Limits
from inflight_gateway.http.cors import Cors
from inflight_gateway.http.front import Front
from inflight_gateway.http.keys import Keys
from inflight_gateway.http.log import begin
from inflight_gateway.http.protocol import Connection
from inflight_gateway.triton.fleet import Fleet

log = logging.getLogger("inflight_gateway")
STEP_S = 0.05
ERRORS_S = 1.0  # for answers that were ended to say so


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `OSError`."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=workers.BACKLOG)


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves in phases."""

    def __init__(
        self, config: uvicorn.Config, front: Front, notice_s: float, timeout_s: float, parent: int | None = None
    ) -> None:
        """`parent`: of a worker, the pipe that ends with its parent."""
        super().__init__(config)
        self._parent = parent
        self._front = front
        self._notice_s, self._timeout_s = notice_s, timeout_s
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Remember the loop that signals are told to."""
        self._loop = asyncio.get_running_loop()
        if self._parent is not None:
            workers.tell_when_orphaned(self._parent, lambda: self.handle_exit(signal.SIGTERM, None))
        await super().startup(sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the drain; a second one ends at once."""
        if self._loop is None or self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        notice_s = self._notice_s if sig == signal.SIGTERM else 0.0
        self._loop.call_soon_threadsafe(self._begin, notice_s)

    def _begin(self, notice_s: float) -> None:
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(
                self._drain(notice_s), name="inflight-gateway-drain"
            )

    async def _drain(self, notice_s: float) -> None:
        self._front.leaving = True
        await asyncio.sleep(notice_s)
        self._front.answers.refusing = True
        end = time.monotonic() + self._timeout_s
        while self._front.answers.under_way and time.monotonic() < end:
            await asyncio.sleep(STEP_S)
        if self._front.answers.under_way:
            self._front.answers.end_all()
            await asyncio.sleep(ERRORS_S)
        self.should_exit = True


def take_files() -> None:
    """As many open files as the system allows: a request takes two, and a shell's usual limit is 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a limit that may not be had: what there is has to do
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _no_port(options: argparse.Namespace, error: OSError) -> str:
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror  # some say it twice
    return (
        f"port {options.port} on {options.host} cannot be used ({reason}): stop what listens there, or choose "
        "another with --port or INFLIGHT_GATEWAY_PORT"
    )


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Serve until asked to stop."""
    found = told.parser(program, (__doc__ or "").split("\n", 1)[0])
    words = sys.argv[1:] if arguments is None else arguments
    options = found.parse_args(words)
    try:
        told.check(options)
    except ValueError as error:
        found.error(str(error))
    keys = Keys(options.api_keys, os.environ)
    Connection.head_s = options.head_timeout
    begin(as_json=options.log_format == "json")
    worker = workers.inherited(os.environ)
    if options.workers > 1 and worker is None:
        longest = options.drain_notice + options.drain_timeout
        try:
            return workers.serve(words, options.host, options.port, options.workers, longest)
        except OSError as error:
            found.error(_no_port(options, error))
    limits = Limits(
        body_bytes=options.max_body_bytes,
        body_s=options.body_timeout,
        requests=options.max_requests,
        requests_per_key=options.max_requests_per_key or options.max_requests,
        write_s=options.write_timeout,
        keep_alive_s=options.keep_alive,
        refuse_unknown=options.unknown_fields == "refuse",
    )
    take_files()
    tritons = options.triton or [told.TRITON]
    if len(options.health or ()) > len(tritons):
        found.error("--health says how a --triton is: give each of them at most one, in the same order")
    try:
        fleet = Fleet(tritons, options.health or ())
    except ValueError as error:
        found.error(f"--health {error}: give the port that `inflight serve` names, 8003 by default")
    front = Front(
        fleet,
        keys,
        limits,
        page=not options.no_playground,
    )
    config = uvicorn.Config(
        Cors(front, options.cors_origin) if options.cors_origin else front,
        host=options.host,
        port=options.port,
        loop="uvloop",
        http=Connection,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,  # its few words are lines of our log
        log_level="warning",
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
    )

    def reload(_number: int, _frame: FrameType | None) -> None:
        try:
            keys.load()
        except (OSError, UnicodeError) as error:
            log.error("%s cannot be read, the keys stay as they were: %s", options.api_keys, error)

    try:
        listening = worker[0] if worker else listen(options.host, options.port)
    except OSError as error:
        found.error(_no_port(options, error))
    if worker is None:
        scheme = "http" if options.tls_cert is None else "https"
        log.info("answers at %s://%s:%d/v1", scheme, *listening.getsockname()[:2])
    signal.signal(signal.SIGHUP, reload)
    server = _Server(config, front, options.drain_notice, options.drain_timeout, worker[1] if worker else None)
    with contextlib.suppress(KeyboardInterrupt):
        server.run([listening])
    return 0 if server.started else 1
