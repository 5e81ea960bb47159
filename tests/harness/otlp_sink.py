"""A collector of traces: it reads OTLP over HTTP, Triton's (JSON) and that of OpenTelemetry's SDK (protobuf)."""

from __future__ import annotations

import dataclasses
import gzip
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """One span; ids in hexadecimal, times in Unix ns; `by` is json or protobuf."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    by: str


class Sink:
    """Listens on a port of its own while the `with` block lasts."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                is_json = "json" in self.headers.get("Content-Type", "")
                sink.spans += list(_json_spans(json.loads(body)) if is_json else _protobuf_spans(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def until(self, enough: Callable[[list[Span]], bool], timeout_s: float = 20.0) -> list[Span]:
        """The spans once there are enough of them. Raises `TimeoutError` with what there is."""
        give_up = time.monotonic() + timeout_s
        while not enough(list(self.spans)):
            if time.monotonic() > give_up:
                raise TimeoutError("\n".join(f"{span.trace_id} {span.name} {span.by}" for span in self.spans))
            time.sleep(0.05)
        return list(self.spans)

    def __enter__(self) -> Sink:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _json_spans(content: dict[str, Any]) -> Iterator[Span]:
    for resource in content["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                yield Span(
                    span["traceId"].lower(),
                    span["spanId"].lower(),
                    span.get("parentSpanId", "").lower(),
                    span["name"],
                    int(span["startTimeUnixNano"]),
                    int(span["endTimeUnixNano"]),
                    {each["key"]: next(iter(each["value"].values()), None) for each in span.get("attributes", [])},
                    "json",
                )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of one protobuf message: an int, or bytes."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while place < len(data):
        tag = varint()
        size = {1: 8, 5: 4}.get(tag & 7)
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        if size is None:
            size = varint()
        yield tag >> 3, data[place : place + size]
        place += size


def _protobuf_spans(body: bytes) -> Iterator[Span]:
    """Field numbers of opentelemetry-proto's ExportTraceServiceRequest, ResourceSpans, ScopeSpans and Span."""
    for resource in (value for number, value in _fields(body) if number == 1):
        for scope in (value for number, value in _fields(resource) if number == 2):
            for span in (value for number, value in _fields(scope) if number == 2):
                found = dict(_fields(span))
                pairs = (dict(_fields(value)) for number, value in _fields(span) if number == 9)
                yield Span(
                    found[1].hex(),
                    found[2].hex(),
                    found.get(4, b"").hex(),
                    found[5].decode(),
                    int.from_bytes(found[7], "little"),
                    int.from_bytes(found[8], "little"),
                    {pair[1].decode(): _any_value(pair[2]) for pair in pairs},
                    "protobuf",
                )


def _any_value(data: bytes) -> Any:
    for number, value in _fields(data):
        if number == 1:
            return value.decode()
        if number == 4:
            return struct.unpack("<d", value)[0]
        if number == 5:
            return [_any_value(each) for _, each in _fields(value)]
        return bool(value) if number == 2 else value
    return None
