"""A connection to a model on Triton over HTTP (generate extension, server-sent events), with nothing installed."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

from inflight.request.contract import OUTPUTS
from inflight_tools.clients.answer import Response
from inflight_tools.clients.connection import Value, has_grpc, lacks_model, no_model
from inflight_tools.common.report import Failure

_CALL_TIMEOUT_S = 10.0
_MAX_LINE_BYTES = 64 * 1024 * 1024  # of one event; it bounds what a wrong server can make us keep
_STRINGS = frozenset(output.name for output in OUTPUTS if output.type == "STRING")
_NAMES = frozenset(output.name for output in OUTPUTS)


def encode(inputs: Mapping[str, Value], request_id: str) -> bytes:
    """The request's body. Raises `Failure` for a text that is not UTF-8, which JSON cannot carry."""
    body: dict[str, Any] = {"id": request_id} if request_id else {}
    for name, value in inputs.items():
        try:
            body[name] = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            raise Failure(f"{name} is not UTF-8 text (byte {error.start} is wrong), which HTTP needs.") from None
    return json.dumps(body).encode()


def decode(event: Mapping[str, Any], at: float) -> Response:
    """One event as a response: a value alone is a list of one on the wire of tensors, texts are bytes there."""
    outputs: dict[str, list[Any]] = {}
    for name in _NAMES & event.keys():
        values = event[name] if isinstance(event[name], list) else [event[name]]
        outputs[name] = [value.encode("utf-8", "replace") for value in values] if name in _STRINGS else values
    return Response(at, outputs, final=False)


class Connection:
    """Requests to one server, each over a connection of its own. Closing one that is under way cancels its request."""

    def __init__(self, url: str) -> None:
        """`url` is host:port, or begins with http:// or https://. Nothing is sent yet."""
        self.url = url
        split = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = split.port
        except ValueError:
            port = 0
        if split.scheme not in ("http", "https") or not split.hostname or port == 0:
            raise Failure(
                f"--url is {url!r} and has to be HOST:PORT, or an address that begins with http:// or https://."
            )
        self._make = http.client.HTTPSConnection if split.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._prefix = split.hostname, port, split.path.rstrip("/")
        self._open: http.client.HTTPConnection | None = None

    def is_batched(self, model: str, shape: str) -> bool:
        """Always False: over HTTP the server gives tensors their shape. Raises `Failure` for a `shape` of one's own."""
        if shape != "auto":
            raise Failure(f"--shape {shape} concerns gRPC: over HTTP the server itself gives tensors their shape.")
        return False

    def stream(
        self,
        model: str,
        inputs: Mapping[str, Value],
        batched: bool,
        idle_timeout_s: float = 120.0,
        request_id: str = "",
    ) -> Iterator[Response]:
        """Send one request and give its responses as they come.

        Raises `Failure` with the server's sentence for an error, and when nothing comes for `idle_timeout_s` seconds.
        Leaving the iteration early cancels the request.
        """
        body = encode(inputs, request_id)
        path = f"/v2/models/{quote(model, safe='')}/generate_stream"
        events = 0
        try:
            answer = self._post(path, body, idle_timeout_s)
            for line in _lines(answer):
                if line.startswith(b"data:"):
                    event = json.loads(line[len(b"data:") :])
                    if not isinstance(event, dict):
                        raise Failure(self._stranger())
                    if "error" in event:
                        raise self._failure(str(event["error"]), model)
                    yield decode(event, time.perf_counter())
                    events += 1
                elif answer.status != http.client.OK:
                    raise self._failure(str(json.loads(line)["error"]), model)
        except TimeoutError:
            raise Failure(
                f"nothing came from {self.url} for {idle_timeout_s:g} s: look at the server's log, or wait longer with "
                "--timeout."
            ) from None
        except (OSError, http.client.IncompleteRead):
            raise Failure(
                f"the connection to {self.url} was cut before the answer was complete: look at the server's log."
            ) from None
        except (ValueError, KeyError, TypeError, http.client.HTTPException):
            raise Failure(self._stranger()) from None
        finally:
            self.cancel()
        if not events:
            raise Failure(self._stranger())

    def cancel(self) -> None:
        """Close what is open; a request that is under way in it is cancelled at the server."""
        connection, self._open = self._open, None
        if connection is not None:
            connection.close()

    def _post(self, path: str, body: bytes, idle_timeout_s: float) -> http.client.HTTPResponse:
        self._open = connection = self._make(self._host, self._port, timeout=_CALL_TIMEOUT_S)
        try:
            connection.connect()
        except OSError as error:
            raise Failure(self._nobody(error)) from None
        if isinstance(connection.sock, socket.socket):
            connection.sock.settimeout(idle_timeout_s)
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        connection.request("POST", self._prefix + path, body, headers)
        return connection.getresponse()

    def _nobody(self, error: OSError) -> str:
        hint = "" if has_grpc() else '; for the gRPC port there is pip install "inflight[client]"'
        return (
            f"no server answers over HTTP at {self.url} ({error.strerror or error}): start one with inflight serve, or "
            f"name another with --url (HTTP is usually on port 8000{hint})."
        )

    def _stranger(self) -> str:
        return (
            f"what answers at {self.url} is not the HTTP port of a Triton with this model: name that port with --url, "
            "usually HOST:8000."
        )

    def _failure(self, error: str, model: str) -> Failure:
        """A sentence for what the server reports."""
        text = " ".join(error.split()).rstrip(".")
        if text == "Method Not Allowed":  # Triton's port for metrics
            return Failure(self._stranger())
        if lacks_model(text):
            return no_model(self.url, model, text)
        return Failure(f"{text}.")

    def __enter__(self) -> Connection:
        """Use as a context manager."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel and close."""
        self.cancel()


def _lines(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """The lines of an answer as they come. Raises `IncompleteRead` when it is cut off, which readline() hides."""
    rest = b""
    while piece := answer.read1(65536):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
        if len(rest) > _MAX_LINE_BYTES:
            raise ValueError("a line without an end")
    if answer.length:
        raise http.client.IncompleteRead(rest)
    yield rest
