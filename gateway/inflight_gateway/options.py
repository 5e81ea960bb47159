"""What the gateway can be told. `inflight serve` takes the same and hands it on: so this needs no package of the
gateway's, and where something is wrong it is said before anything is started.
"""

from __future__ import annotations

import argparse
import os
import re
import ssl
from pathlib import Path
from typing import NoReturn

from inflight_gateway.http.keys import VARIABLE, Keys

TRITON = "localhost:8001"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s,]+")


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
    if text != "*" and not _ORIGIN.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no origin: give scheme://host or scheme://host:port, without a path, or *"
        )
    return text


def add(to: argparse._ActionsContainer) -> list[argparse.Action]:
    """What holds wherever the gateway runs: all but where it listens, what it asks, and how it drains."""
    return [
        to.add_argument("--api-keys", type=Path, metavar="FILE", help=f"one key a line; also ${VARIABLE}, by commas"),
        to.add_argument("--workers", type=_count, default=1, metavar="N", help="processes; limits are each one's own"),
        to.add_argument(
            "--max-requests", type=_count, default=1024, metavar="N", help="under way at once (%(default)s)"
        ),
        to.add_argument("--max-requests-per-key", type=_count, metavar="N", help="(default: --max-requests)"),
        to.add_argument("--max-body-bytes", type=_count, default=4 << 20, metavar="N", help="(%(default)s)"),
        to.add_argument(
            "--unknown-fields",
            choices=("name", "refuse"),
            default="name",
            help="of requests: name them in the header x-inflight-ignored, or refuse the request (%(default)s)",
        ),
        to.add_argument("--head-timeout", type=_seconds, default=10.0, metavar="S", help="of a request (%(default)s)"),
        to.add_argument("--body-timeout", type=_seconds, default=30.0, metavar="S", help="(%(default)s)"),
        to.add_argument(
            "--write-timeout", type=_seconds, default=60.0, metavar="S", help="of a client that does not read"
        ),
        to.add_argument(
            "--keep-alive", type=_seconds, default=15.0, metavar="S", help="between comments in idle streams"
        ),
        to.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM; answers over HTTPS"),
        to.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM, where it is not in --tls-cert"),
        to.add_argument(
            "--cors-origin",
            type=_origin,
            action="append",
            metavar="ORIGIN",
            help="of pages that may ask, as https://example.org; may repeat; * is every one (default: none)",
        ),
        to.add_argument("--no-playground", action="store_true", help="no page at /"),
        to.add_argument("--log-format", choices=("text", "json"), default="text", help="of its log (%(default)s)"),
    ]


def parser(program: str | None, about: str) -> argparse.ArgumentParser:
    """All that `inflight gateway` can be told."""
    found = _Parser(prog=program, description=about)
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
    found.add_argument("--drain-notice", type=_seconds, default=5.0, metavar="S", help="on SIGTERM (%(default)s)")
    found.add_argument("--drain-timeout", type=_seconds, default=30.0, metavar="S", help="for streams (%(default)s)")
    add(found)
    return found


def words(given: argparse.Namespace) -> list[str]:
    """What of `add` was `given`, as a command line that means the same in any folder; what is as by default is not."""
    found: list[str] = []
    for action in add(argparse.ArgumentParser(add_help=False)):
        value, option = getattr(given, action.dest), action.option_strings[0]
        if value is True:
            found.append(option)
        elif value != action.default:
            for one in value if isinstance(value, list) else [value]:
                found += [option, str(one.absolute() if isinstance(one, Path) else one)]
    return found


def check(given: argparse.Namespace) -> None:
    """Raise `ValueError` with what is wrong with the files that are named."""
    try:
        Keys(given.api_keys, os.environ)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ValueError(f"--api-keys: {given.api_keys} cannot be read ({reason})") from None
    _check_tls(given.tls_cert, given.tls_key)


def _check_tls(certificate: Path | None, key: Path | None) -> None:
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
