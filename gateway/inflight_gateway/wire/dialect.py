"""What the connection needs of a dialect: how its requests are read, and how it says that something went wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from inflight_gateway.core.errors import GatewayError
from inflight_gateway.core.models import Model
from inflight_gateway.wire.openai import Plan, encoder, error_body, sse

Parse = Callable[[dict[str, Any], Model], Plan]


@dataclasses.dataclass(frozen=True, slots=True)
class Dialect:
    """How clients of one API hear of an error.

    `refused`: status and body, from the error and the request's id. `broken`: the last event of a stream, also from the
    answer's renderer. `id_header`: where its clients look for the request's id, besides x-request-id. `headers`: an
    answer's, from its renderer and the seconds since the request came; None where it only begins.
    """

    refused: Callable[[GatewayError, str], tuple[int, Mapping[str, Any]]]
    broken: Callable[[GatewayError, str, Any], bytes]
    id_header: bytes = b""
    headers: Callable[[Any, float | None], Mapping[str, str]] = lambda _renderer, _seconds: {}


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """A path on which a model answers. A body with one of the fields in `shapes` is that endpoint's instead."""

    dialect: Dialect
    parse: Parse
    model_named: bool = True  # else a request without a model means the first one
    shapes: Mapping[str, Endpoint] = dataclasses.field(default_factory=dict)

    def of(self, body: Mapping[str, Any]) -> Endpoint:
        """The endpoint that a body of that shape is for."""
        return next((other for name, other in self.shapes.items() if body.get(name) is not None), self)


OPENAI = Dialect(lambda error, _: (error.kind.status, error_body(error)), lambda error, _, __: sse(error_body(error)))


def in_its_words(error: GatewayError, names: Mapping[str, str]) -> GatewayError:
    """The error with its field under the name that the dialect has for it. `names`: OpenAI's name → the dialect's."""
    name = names.get(error.param or "")
    if name is None or error.param is None:
        return error
    message = error.message
    if message.startswith(error.param):
        message = name + message[len(error.param) :]
    return GatewayError(error.kind, message, name)


def event(kind: str, value: Mapping[str, Any]) -> bytes:
    """A named event of a stream; its name also stands in the data."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), encoder.encode({"type": kind, **value}))
