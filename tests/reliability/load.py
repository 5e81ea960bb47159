"""Streaming clients by the hundred: one asyncio loop, one gRPC call per request, so that each can be cancelled alone.

Every call ends in an `End`; what never ends within its limit ends as `SILENT`, which no test accepts.

A streamed error reaches the client as a message without its gRPC status, unless the client asks for it with the header
`triton_grpc_error`. With that, Triton 24.10 dies of a segmentation fault when many streams end in an error at once
(docs/reliability.md). So an error's kind is told here by its sentence; tests over HTTP see the status.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.harness.tensors import add_input, outputs

SILENT = "silent"  # nothing for the whole limit: the one thing that must never happen
LEFT = "left"  # the client itself went away
LIMIT_S = 60.0  # for which a client waits at the least, however quick the engine is
SLACK = 3.0  # times what the engine was measured to need; machines are not evenly busy
PACE_TOKENS = 16
_SENTENCES = (
    ("INTERNAL", r"internal error"),
    ("CANCELLED", r"was cancelled by its client"),
    ("UNAVAILABLE", r"try again|to another server|is not started again|the deadline passed|is not at ready state"),
    ("UNIMPLEMENTED", r" is not supported: "),
    ("core", r"^\[request id: |unexpected (shape|inference input|datatype)|for input .* expected|^in ensemble"),
)
OPTIONS = [
    ("grpc.max_receive_message_length", 1 << 30),
    ("grpc.max_send_message_length", 1 << 30),
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclasses.dataclass(slots=True)
class End:
    """How one request ended for its client: "stop", "length", "deadline", "final" (no reason asked for), the name of
    a gRPC status, `LEFT` or `SILENT`. `at` and `first_at` are monotonic seconds, 0 for "never".
    """

    how: str
    message: str = ""
    text: str = ""
    tokens: int = 0
    responses: int = 0
    sizes: list[int] = dataclasses.field(default_factory=list)  # tokens of each response
    finals: int = 0
    at: float = 0.0
    first_at: float = 0.0


def make_request(model: str = "llm", **inputs: Any) -> pb.ModelInferRequest:
    """A streaming request with the inputs given; `parameters` are request parameters."""
    request = pb.ModelInferRequest(model_name=model)
    parameters = {"triton_enable_empty_final_response": True, **inputs.pop("parameters", {})}
    for name, value in {
        "stream": True,
        "return_num_output_tokens": True,
        "return_finish_reason": True,
        **inputs,
    }.items():
        if value is not None:
            add_input(request, name, value)
    for name, value in parameters.items():
        field = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
        setattr(request.parameters[name], field[type(value)], value)
    return request


class Load:
    """Channels to one server. Use inside a running loop, as an async context manager."""

    def __init__(self, url: str, channels: int = 4, limit_s: float = LIMIT_S) -> None:
        self._channels = [grpc.aio.insecure_channel(url, options=OPTIONS) for _ in range(channels)]
        self._stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in self._channels]
        self._next = 0
        self._limit_s = limit_s

    async def __aenter__(self) -> Load:
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()

    async def run(
        self,
        request: pb.ModelInferRequest,
        leave_when: Callable[[End], bool] | None = None,
        leave_after_s: float | None = None,
        pause: Callable[[End], Awaitable[None]] | None = None,
    ) -> End:
        """Send one request and read it to its end; `leave_when` (asked after every response) and `leave_after_s` make
        the client cancel; `pause` is awaited after every response (a slow reader).
        """
        stub = self._stubs[self._next % len(self._stubs)]
        self._next += 1
        end = End("")
        closing = asyncio.Event()

        async def outgoing() -> AsyncIterator[pb.ModelInferRequest]:
            yield request
            await closing.wait()  # half-closing would let the server end the stream before an error comes

        call = stub.ModelStreamInfer(outgoing())
        task = asyncio.ensure_future(_read(call, closing, end, leave_when, pause))
        limit = self._limit_s if leave_after_s is None else leave_after_s
        try:
            done, _ = await asyncio.wait({task}, timeout=limit)
            if not done and not end.finals:
                end.how = SILENT if leave_after_s is None else LEFT
        finally:
            end.at = end.at or time.monotonic()
            closing.set()
            if end.how in (LEFT, SILENT) or not task.done():
                call.cancel()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return end

    async def all(self, requests: Iterable[pb.ModelInferRequest]) -> list[End]:
        """All at the same time."""
        return list(await asyncio.gather(*(self.run(request) for request in requests)))


async def _read(
    call: Any,
    closing: asyncio.Event,
    end: End,
    leave_when: Callable[[End], bool] | None,
    pause: Callable[[End], Awaitable[None]] | None,
) -> None:
    try:
        async for message in call:
            if message.error_message:
                end.how, end.message = kind_of(message.error_message), message.error_message
                end.finals += 1
                end.at = time.monotonic()
                closing.set()
                continue
            _take(message.infer_response, end)
            if end.finals:
                end.how = end.how or "final"
                closing.set()  # and read on: a second final response would be seen
                continue
            if leave_when is not None and leave_when(end):
                end.how = LEFT
                return
            if pause is not None:
                await pause(end)
        if not end.finals:
            end.how, end.message = "closed", "the server ended the stream without a final response"
    except grpc.aio.AioRpcError as error:
        end.how, end.message = error.code().name, str(error.details())


def _take(answer: pb.ModelInferResponse, end: End) -> None:
    end.responses += 1
    end.first_at = end.first_at or time.monotonic()
    values = outputs(answer)
    end.text += b"".join(values.get("text_output", [])).decode()
    tokens = int(sum(values.get("num_output_tokens", [])))
    end.tokens += tokens
    end.sizes.append(tokens)
    reasons = [reason.decode() for reason in values.get("finish_reason", []) if reason]
    if reasons:
        end.how = reasons[-1]
    if answer.parameters["triton_final_response"].bool_param:
        end.finals += 1
        end.at = time.monotonic()


def kind_of(message: str) -> str:
    """The kind of an error by our own sentences; "core" for what Triton refuses before it reaches us."""
    for kind, pattern in _SENTENCES:
        if re.search(pattern, message):
            return kind
    return "INVALID_ARGUMENT"


def tally(ends: Iterable[End]) -> str:
    """How many ended how, for the report."""
    counts = Counter(end.how for end in ends)
    return ", ".join(f"{count} {how}" for how, count in sorted(counts.items(), key=lambda item: -item[1]))


def drive(url: str, work: Callable[[Load], Awaitable[Any]], **options: Any) -> Any:
    """Run `work` with a `Load` in a loop of its own."""

    async def main() -> Any:
        async with Load(url, **options) as load:
            return await work(load)

    return asyncio.run(main())


def pace(url: str, streams: int, model: str = "llm") -> float:
    """Seconds that a token takes here and now while so many streams ask for them, waiting for a place included."""
    requests = [
        make_request(model, text_input=f"pace {number}", max_tokens=PACE_TOKENS, ignore_eos=True)
        for number in range(streams)
    ]
    began = time.monotonic()
    ends: list[End] = drive(url, lambda load: load.all(requests), limit_s=2 * LIMIT_S)
    assert {(end.how, end.tokens) for end in ends} == {("length", PACE_TOKENS)}, tally(ends)
    return (max(end.at for end in ends) - began) / PACE_TOKENS


def patience(tokens: int, token_s: float, beside_s: float = 0.0) -> float:
    """For how many seconds a client waits for so many tokens, `token_s` each (`pace`), before silence is a fault;
    `beside_s` is what a test itself takes meanwhile.
    """
    return LIMIT_S + beside_s + SLACK * tokens * token_s
