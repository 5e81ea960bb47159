"""OpenTelemetry's SDK, imported only where tracing is switched on: spans over OTLP/HTTP.

Where to, with which headers and certificates, and under which service name is said by the SDK's own environment
variables: OTEL_EXPORTER_OTLP_ENDPOINT and its like, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from inflight import __version__
from inflight.errors import LoadError, quoted
from inflight.identity import Trace
from inflight.serving.spans import PROVIDER, Span
from inflight.serving.tracing import Tree

_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Otlp:
    """An `Exporter`. Used by one thread."""

    def __init__(self) -> None:
        """Import the SDK and read its environment. Raises `LoadError`."""
        for name in _PROTOCOLS:
            protocol = os.environ.get(name, "http/protobuf")
            if protocol != "http/protobuf":
                raise LoadError(f"{name} must be http/protobuf, but is {quoted(protocol)}: spans go over HTTP alone.")
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import ReadableSpan
            from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError as missing:
            raise LoadError(
                f"INFLIGHT_TRACING is on and {missing.name} is missing in the server's Python: "
                'pip install "inflight[otel]" there, or switch it off.'
            ) from None
        self._trace, self._span = trace, ReadableSpan
        self._ids = RandomIdGenerator()
        self._exporter = OTLPSpanExporter()
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        self._resource = Resource.create({} if named else {"service.name": PROVIDER})
        self._scope = InstrumentationScope(PROVIDER, __version__)

    def export(self, trees: Sequence[Tree]) -> bool:
        """See `Exporter`."""
        spans: list[Any] = []
        for trace, (whole, *parts) in trees:
            parent = self._context(trace, int(trace.parent_id, 16))
            own = self._context(trace, self._ids.generate_span_id())
            spans.append(self._made(whole, own, parent))
            spans += [self._made(part, self._context(trace, self._ids.generate_span_id()), own) for part in parts]
        return bool(self._exporter.export(spans).value == 0)

    def shutdown(self) -> None:
        """See `Exporter`."""
        self._exporter.shutdown()

    def _context(self, trace: Trace, span_id: int) -> Any:
        flags = self._trace.TraceFlags(self._trace.TraceFlags.SAMPLED)
        return self._trace.SpanContext(int(trace.trace_id, 16), span_id, is_remote=False, trace_flags=flags)

    def _made(self, span: Span, context: Any, parent: Any) -> Any:
        status = self._trace.Status(self._trace.StatusCode.ERROR, span.error) if span.error else None
        return self._span(
            name=span.name,
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=dict(span.attributes),
            kind=self._trace.SpanKind.INTERNAL,
            status=status or self._trace.Status(self._trace.StatusCode.UNSET),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )
