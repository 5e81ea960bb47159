"""A connection to a model on Triton, over the protocol that is at hand: gRPC with `tritonclient`, else plain HTTP."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Protocol

from inflight_tools.clients.answer import Response
from inflight_tools.common.report import Failure

SHAPES = ("auto", "flat", "batched")
PROTOCOLS = ("auto", "grpc", "http")
GRPC_URL = "127.0.0.1:8001"
HTTP_URL = "127.0.0.1:8000"

Value = str | bytes | int | float | bool | Sequence[str] | Sequence[int]


class Connection(Protocol):
    """What asking needs. As a context manager it closes itself, cancelling what is under way."""

    def is_batched(self, model: str, shape: str) -> bool:
        """Whether tensors have a batch dimension of 1 in front: what `shape` says, or for "auto" the model."""

    def stream(
        self, model: str, inputs: Mapping[str, Value], batched: bool, idle_timeout_s: float, request_id: str
    ) -> Iterator[Response]:
        """Send one request and give its responses as they come."""

    def __enter__(self) -> Connection:
        """Open."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel and close."""


def lacks_model(text: str) -> bool:
    """Whether a server's error says that it does not serve the model."""
    return any(words in text for words in ("unknown model", "is not found", "is not ready"))


def no_model(url: str, model: str, text: str) -> Failure:
    """The sentence for it; `text` is the server's own."""
    return Failure(f"the server at {url} has no model {model!r} that is ready: choose another with --model ({text}).")


def has_grpc() -> bool:
    """Whether what gRPC needs is installed."""
    return all(importlib.util.find_spec(package) is not None for package in ("tritonclient", "grpc", "numpy"))


def choose(url: str | None, protocol: str, grpc: bool) -> tuple[str, str]:
    """The protocol and the address, from what the user said and whether gRPC can be spoken."""
    if protocol == "auto":
        protocol = "http" if (url is not None and "://" in url) or not grpc else "grpc"
    return protocol, url or (HTTP_URL if protocol == "http" else GRPC_URL)


def connect(url: str | None, protocol: str) -> Connection:
    """A connection; nothing is sent yet. `url` is host:port, or begins with http:// or https://."""
    protocol, address = choose(url, protocol, has_grpc())
    if protocol == "http":
        from inflight_tools.clients import http_sse

        return http_sse.Connection(address)
    from inflight_tools.clients import grpc

    return grpc.Connection(address)
