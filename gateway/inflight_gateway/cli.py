"""`inflight gateway`: OpenAI's, Anthropic's and TGI's APIs in front of a Triton with Inflight models.

SIGTERM: not ready for the drain's notice while everything is served, then 503 for what is new, then the end; Ctrl-C
leaves the notice out. SIGHUP reads the keys again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn

from inflight_gateway import workers
from inflight_gateway.http.answers import Limits
from inflight_gateway.http.cors import Cors, check_origin
from inflight_gateway.http.front import Front
from inflight_gateway.http.keys import VARIABLE, Keys
from inflight_gateway.http.protocol import Connection
from inflight_gateway.triton.fleet import Fleet

log = logging.getLogger("inflight_gateway")
TRITON = "localhost:8001"
STEP_S = 0.05
ERRORS_S = 1.0  # for answers that were ended to say so


class _Parser(argparse.ArgumentParser):
    """Mistakes are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end with status 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: it has to be a number from 1 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} has to be a whole number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e7:
        raise argparse.ArgumentTypeError(f"{text!r} has to be a number of seconds, 0 or more")
    return value


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isdecimal() and 0 < int(port) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, as {TRITON} is, of Triton's gRPC")
    return text


def _origin(text: str) -> str:
    try:
        return check_origin(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_tls(certificate: Path | None, key: Path | None) -> None:
    """Raise `ValueError` with what is wrong with the files; both None is fine."""
    if certificate is None:
        if key is not None:
            raise ValueError("--tls-key needs --tls-cert: give both")
        return
    for option, path in (("--tls-cert", certificate), ("--tls-key", key)):
        if path is not None:
            try:
                path.read_bytes()
            except OSError as error:
                raise ValueError(f"{option}: {path} cannot be read ({error.strerror})") from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(
            f"--tls-cert {certificate} and --tls-key {key or '(none)'} are no certificate and its own key, both PEM, "
            f"without a password ({reason})"
        ) from None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `OSError`."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=workers.BACKLOG)


def parser(program: str | None = None) -> argparse.ArgumentParser:
    """What the gateway can be told."""
    found = _Parser(prog=program, description=(__doc__ or "").split("\n", 1)[0])
    found.add_argument(
        "--triton",
        action="append",
        type=_address,
        metavar="HOST:PORT",
        help=f"Triton's gRPC ({TRITON}); may repeat: several servers",
    )
    found.add_argument(
        "--health", action="append", metavar="HOST:PORT", help="of each --triton: `inflight serve` has it at 8003"
    )
    found.add_argument("--host", default=os.environ.get("INFLIGHT_HOST", "127.0.0.1"), help="%(default)s")
    found.add_argument(
        "--port", type=_port, default=os.environ.get("INFLIGHT_GATEWAY_PORT", "8080"), help="%(default)s"
    )
    found.add_argument("--api-keys", type=Path, metavar="FILE", help=f"one key a line; also ${VARIABLE}, by commas")
    found.add_argument("--workers", type=_count, default=1, metavar="N", help="processes; limits are each one's own")
    found.add_argument("--max-requests", type=_count, default=1024, metavar="N", help="under way at once (%(default)s)")
    found.add_argument("--max-requests-per-key", type=_count, metavar="N", help="(default: --max-requests)")
    found.add_argument("--max-body-bytes", type=_count, default=4 << 20, metavar="N", help="(%(default)s)")
    found.add_argument(
        "--unknown-fields",
        choices=("name", "refuse"),
        default="name",
        help="of requests: name them in the header x-inflight-ignored, or refuse the request (%(default)s)",
    )
    found.add_argument("--head-timeout", type=_seconds, default=10.0, metavar="S", help="of a request (%(default)s)")
    found.add_argument("--body-timeout", type=_seconds, default=30.0, metavar="S", help="(%(default)s)")
    found.add_argument(
        "--write-timeout", type=_seconds, default=60.0, metavar="S", help="of a client that does not read"
    )
    found.add_argument(
        "--keep-alive", type=_seconds, default=15.0, metavar="S", help="between comments in idle streams"
    )
    found.add_argument("--drain-notice", type=_seconds, default=5.0, metavar="S", help="on SIGTERM (%(default)s)")
    found.add_argument("--drain-timeout", type=_seconds, default=30.0, metavar="S", help="for streams (%(default)s)")
    found.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM; answers over HTTPS")
    found.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM, where it is not in --tls-cert")
    found.add_argument(
        "--cors-origin",
        type=_origin,
        action="append",
        metavar="ORIGIN",
        help="of pages that may ask, as https://example.org; may repeat; * is every one (default: none)",
    )
    found.add_argument("--no-playground", action="store_true", help="no page at /")
    found.add_argument("--log-format", choices=("text", "json"), default="text")

    return found


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
    found = parser(program)
    words = sys.argv[1:] if arguments is None else arguments
    options = found.parse_args(words)
    try:
        keys = Keys(options.api_keys, os.environ)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        found.error(f"--api-keys: {options.api_keys} cannot be read ({reason})")
    try:
        check_tls(options.tls_cert, options.tls_key)
    except ValueError as error:
        found.error(str(error))
    Connection.head_s = options.head_timeout
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
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
    tritons = options.triton or [TRITON]
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
        log_json=options.log_format == "json",
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
