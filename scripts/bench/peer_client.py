"""The one client of all peers: the same prompts at the same times, over gRPC to Triton or over HTTP to everybody else.

Written on asyncio; per response it does nothing but note the time and count the tokens, so that it costs every peer
about the same.
"""

from __future__ import annotations

import asyncio
import json
import random
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from inflight_tools.common.report import Failure
from inflight_tools.load.perf_analyzer import Load
from inflight_tools.load.profile_export import Request

_OUTPUTS = ("text_output", "num_output_tokens")
_LINE_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Question:
    """One request: greedy, and exactly `max_tokens` tokens."""

    text: str
    max_tokens: int


class Transport(Protocol):
    """A way to ask. As an asynchronous context manager it connects and closes."""

    async def __aenter__(self) -> Transport:
        """Connect."""

    async def __aexit__(self, *error: object) -> None:
        """Close."""

    def ask(self, question: Question) -> AsyncIterator[int]:
        """How many tokens each response carries, as the responses come. Raises `Failure`."""


def arrivals(rate: float, count: int, seed: str) -> list[float]:
    """When `count` requests of a Poisson process are sent, in seconds from the start."""
    chooser = random.Random(f"inflight arrivals {seed}")
    at, times = 0.0, []
    for _ in range(count):
        times.append(at)
        at += chooser.expovariate(rate)
    return times


def drive(transport: Transport, questions: Sequence[Question], load: Load, seed: str) -> list[Request]:
    """Ask every question once, in order, at the load's times; the requests by the time they were sent.

    Raises `Failure` when a request fails or has not as many tokens as it asked for.
    """
    return asyncio.run(_drive(transport, questions, load, seed))


async def _drive(transport: Transport, questions: Sequence[Question], load: Load, seed: str) -> list[Request]:
    found: list[Request] = []
    async with transport:
        if load.rate is not None:
            begin = time.perf_counter()
            times = arrivals(load.rate, len(questions), seed)

            async def one(at: float, question: Question) -> None:
                await asyncio.sleep(at - (time.perf_counter() - begin))
                found.append(await _measure(transport, question))

            await asyncio.gather(*(one(at, question) for at, question in zip(times, questions, strict=True)))
        else:
            waiting = iter(questions)

            async def worker() -> None:
                for question in waiting:
                    found.append(await _measure(transport, question))

            await asyncio.gather(*(worker() for _ in range(load.concurrency or 1)))
    return sorted(found, key=lambda request: request.sent)


async def _measure(transport: Transport, question: Question) -> Request:
    sent = time.perf_counter_ns()
    got: list[tuple[int, int]] = []
    async for tokens in transport.ask(question):
        if tokens:
            got.append((time.perf_counter_ns(), tokens))
    request = Request(sent, tuple(got), got[-1][0] if got else sent, 0)
    if request.tokens != question.max_tokens:
        raise Failure(f"a peer gave {request.tokens} tokens instead of {question.max_tokens}: nothing can be compared.")
    return request


class SseTransport:
    """Server-sent events over HTTP: `body` makes the request, `tokens` counts those of one event."""

    def __init__(
        self, url: str, body: Callable[[Question], dict[str, Any]], counter: Callable[[], Callable[[Any], int]]
    ) -> None:
        """`counter` makes a counter for one answer, so that it may remember what came before."""
        self._url = url
        self._body = body
        self._counter = counter
        self._session: Any = None

    async def __aenter__(self) -> SseTransport:
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_read=300)
        # llama.cpp's server closes a connection after a streamed answer without saying so before.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(timeout=limits, connector=connector, read_bufsize=_LINE_LIMIT)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    async def ask(self, question: Question) -> AsyncIterator[int]:
        """See `Transport`."""
        count = self._counter()
        async with self._session.post(self._url, json=self._body(question)) as response:
            if response.status != 200:
                raise Failure(f"{self._url} answered {response.status}: {(await response.text())[:300]}")
            async for line in response.content:
                event = parse_event(line)
                if event is not None:
                    yield count(event)


def parse_event(line: bytes) -> Any:
    """What a line of server-sent events carries; None for lines without data and for the end mark."""
    if not line.startswith(b"data:"):
        return None
    data = line[5:].strip()
    return None if data == b"[DONE]" else json.loads(data)


class TritonTransport:
    """Triton's streaming gRPC call, one stream a request; the tokens are told by `num_output_tokens`."""

    def __init__(self, url: str, model: str) -> None:
        """`url`: host:port."""
        self._url = url
        self._model = model
        self._channel: Any = None
        self._call: Any = None

    async def __aenter__(self) -> TritonTransport:
        import grpc.aio
        from tritonclient.grpc import service_pb2_grpc

        self._channel = grpc.aio.insecure_channel(self._url, [("grpc.max_receive_message_length", -1)])
        self._call = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelStreamInfer
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._channel.close()

    async def ask(self, question: Question) -> AsyncIterator[int]:
        """See `Transport`."""
        # The stream is read to its end, never cancelled: Triton 24.10 keeps a request whose stream is cancelled after
        # its final response.
        async for answer in self._call(iter([infer_request(self._model, question)])):
            if answer.error_message:
                raise Failure(f"Triton answered: {answer.error_message}")
            yield tokens_of(answer.infer_response)


def infer_request(model: str, question: Question) -> Any:
    """The protobuf message of one question."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model)
    typed: tuple[tuple[str, str, str, Any], ...] = (
        ("text_input", "BYTES", "bytes_contents", question.text.encode()),
        ("max_tokens", "INT32", "int_contents", question.max_tokens),
        ("temperature", "FP32", "fp32_contents", 0.0),
        ("stream", "BOOL", "bool_contents", True),
        ("ignore_eos", "BOOL", "bool_contents", True),
        ("return_num_output_tokens", "BOOL", "bool_contents", True),
    )
    for name, datatype, field, value in typed:
        tensor = request.inputs.add(name=name, datatype=datatype, shape=[1])
        getattr(tensor.contents, field).append(value)
    for name in _OUTPUTS:
        request.outputs.add(name=name)
    return request


def tokens_of(response: Any) -> int:
    """`num_output_tokens` of a ModelInferResponse: a little-endian UINT32 for each sequence; 0 where there is none."""
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        if output.name == "num_output_tokens":
            return sum(struct.unpack(f"<{len(raw) // 4}I", raw))
    return 0
