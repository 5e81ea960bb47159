"""Clients of a fleet over each of its three protocols, which try nothing again, and what became of their requests."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2 as pb

from bench.recipes import Balancer

LIMIT_S = 60.0  # of one request
_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
PROTOCOLS = ("grpc", "generate_stream", "openai")


@dataclass(slots=True)
class Request:
    """One request and what its client got; times are monotonic seconds, 0 for never."""

    protocol: str
    prompt: str
    tokens: int
    session: str = ""
    model: str = "llm"
    sent_at: float = 0.0
    first_at: float = 0.0
    ended_at: float = 0.0
    got: int = 0  # tokens
    text: str = ""
    finish: str = ""
    error: str = ""

    @property
    def whole(self) -> bool:
        """Every token came, and the end said so."""
        return not self.error and self.finish == "length" and self.got == self.tokens

    @property
    def ttft_ms(self) -> float:
        """Time to the first token."""
        return 1000 * (self.first_at - self.sent_at)


class Clients:
    """Connections to one balancer. Use inside a running loop, as an async context manager."""

    def __init__(self, balancer: Balancer, channels: int = 8) -> None:
        self._balancer = balancer
        self._channels = [grpc.aio.insecure_channel(balancer.grpc, options=_OPTIONS) for _ in range(channels)]
        self._calls = [
            channel.stream_stream(
                _STREAM,
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelStreamInferResponse.FromString,
            )
            for channel in self._channels
        ]
        self._next = 0
        self._ways: dict[str, Callable[[Request], Awaitable[None]]] = {
            "grpc": self._grpc,
            "generate_stream": self._generate_stream,
            "openai": self._openai,
        }

    async def __aenter__(self) -> Clients:
        """Itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close everything."""
        for channel in self._channels:
            await channel.close()

    async def send(self, request: Request) -> Request:
        """Send it and read its answer to the end; whatever goes wrong stands in `error`."""
        request.sent_at = time.monotonic()
        try:
            await asyncio.wait_for(self._ways[request.protocol](request), LIMIT_S)
        except asyncio.TimeoutError:
            request.error = f"no end in {LIMIT_S:.0f} s"
        except grpc.aio.AioRpcError as error:
            request.error = f"{error.code().name}: {error.details()}"
        except (OSError, EOFError, ValueError) as error:
            request.error = f"{type(error).__name__}: {error}"
        request.ended_at = time.monotonic()
        return request

    async def _grpc(self, request: Request) -> None:
        self._next += 1
        message = pb.ModelInferRequest(model_name=request.model)
        wanted = {"max_tokens": request.tokens, "ignore_eos": True, "stream": True}
        outputs = {"return_num_output_tokens": True, "return_finish_reason": True}
        given = {"text_input": request.prompt, "sampling_parameters": json.dumps({**wanted, **outputs})}
        for name, value in given.items():
            content = value.encode()
            message.inputs.append(pb.ModelInferRequest.InferInputTensor(name=name, datatype="BYTES", shape=[1]))
            message.raw_input_contents.append(len(content).to_bytes(4, "little") + content)
        metadata = (("x-session-id", request.session),) if request.session else ()
        message.parameters["triton_enable_empty_final_response"].bool_param = True
        ended = asyncio.Event()

        async def outgoing() -> AsyncIterator[pb.ModelInferRequest]:
            yield message
            await ended.wait()  # half-closing would let the server end the stream before an error comes

        try:
            async for response in self._calls[self._next % len(self._calls)](outgoing(), metadata=metadata):
                request.error = request.error or response.error_message
                if request.error or response.infer_response.parameters["triton_final_response"].bool_param:
                    ended.set()
                request.first_at = request.first_at or time.monotonic()
                raw = response.infer_response.raw_output_contents
                for at, output in enumerate(response.infer_response.outputs):
                    if output.name == "num_output_tokens":
                        request.got += int.from_bytes(raw[at][:4], "little")
                    elif output.name == "text_output":
                        request.text += raw[at][4:].decode()
                    elif output.name == "finish_reason":
                        request.finish = raw[at][4:].decode() or request.finish
        finally:
            ended.set()

    async def _generate_stream(self, request: Request) -> None:
        body = {"text_input": request.prompt, "max_tokens": request.tokens, "stream": True, "ignore_eos": True}
        body |= {"return_num_output_tokens": True, "return_finish_reason": True}
        async for event in _events(self._balancer.http, f"/v2/models/{request.model}/generate_stream", body, request):
            request.error = str(event.get("error") or "")
            request.text += str(event.get("text_output") or "")
            request.got += int(event.get("num_output_tokens") or 0)
            request.finish = event.get("finish_reason") or request.finish

    async def _openai(self, request: Request) -> None:
        body = {"model": request.model, "prompt": request.prompt, "max_tokens": request.tokens, "ignore_eos": True}
        body |= {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
        async for event in _events(self._balancer.openai, "/v1/completions", body, request):
            if "error" in event:
                request.error = str(event["error"]["message"])
            for choice in event.get("choices") or ():
                request.got += bool(choice.get("text"))  # until the usage says it
                request.text += choice.get("text") or ""
                request.finish = choice.get("finish_reason") or request.finish
            if event.get("usage"):
                request.got = event["usage"]["completion_tokens"]


async def _events(address: str, path: str, body: dict[str, Any], request: Request) -> Any:
    """The JSON of each server-sent event; a status that is not 200 is the request's error."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    try:
        session = f"x-session-id: {request.session}\r\n" if request.session else ""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: {address}\r\n{session}connection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        status = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0].decode()
        if " 200 " not in status:
            said = (await reader.read(2000)).decode(errors="replace")
            request.error = f"{status}: {said}"
            return
        whole = False
        while line := await reader.readline():
            whole = whole or line == b"0\r\n"  # the last chunk, without which every HTTP client raises
            if line.startswith(b"data:") and b"[DONE]" not in line:
                request.first_at = request.first_at or time.monotonic()
                yield json.loads(line.removeprefix(b"data:"))
        if not whole:
            request.error = request.error or "the connection broke off"
    finally:
        writer.close()


@dataclass(slots=True)
class Traffic:
    """All requests of a run, and when the event in it began and was over."""

    requests: list[Request] = field(default_factory=list)
    began: float = 0.0
    over: float = 0.0

    @property
    def lost(self) -> list[Request]:
        """Those whose clients did not get everything."""
        return [request for request in self.requests if not request.whole]


async def conversations(
    clients: Clients, count: int, turns: int, name: str, sessions: bool, words: int = 120, tokens: int = 8
) -> list[Request]:
    """`count` conversations at once over gRPC: every turn's prompt is everything before it and some more. `name` makes
    the prompts new to every cache; `sessions`: each conversation sends its name as `x-session-id`.
    """

    async def one(number: int) -> list[Request]:
        told, made = "", []
        for turn in range(turns):
            told += f"{name} {number} {turn}: " + " ".join(f"word{number}x{turn}x{at}" for at in range(words)) + "\n"
            session = f"{name}-{number}" if sessions else ""
            made.append(await clients.send(Request("grpc", told, tokens, session)))
        return made

    return [request for made in await asyncio.gather(*map(one, range(count))) for request in made]


def steady(
    balancer: Balancer,
    event: Callable[[], None],
    requests: int,
    clients_each: int = 6,
    every_s: float = 0.15,
    tokens: int = 6,
    long_tokens: int = 400,
    models: Sequence[str] = ("llm",),
) -> Traffic:
    """Steady load over all protocols, of `models` in turns; once a fifth of it has been sent, `event` happens. The load
    goes on until the event is over and `requests` have been sent. Beside it four long streams of each protocol.

    The event runs in the caller's thread: what it starts may be told to end with the thread that started it.
    """
    traffic, enough, over = Traffic(), threading.Event(), threading.Event()

    async def load() -> None:
        async with Clients(balancer) as clients:

            async def send(protocol: str, length: int) -> None:
                number = len(traffic.requests)
                request = Request(protocol, f"request {number}", length, model=models[number % len(models)])
                traffic.requests.append(request)
                if len(traffic.requests) >= requests / 5:
                    enough.set()
                await clients.send(request)

            async def client(protocol: str, number: int) -> None:
                due = time.monotonic() + every_s * number / clients_each
                while not over.is_set() or len(traffic.requests) < requests:
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    due = max(due + every_s, time.monotonic())
                    await send(protocol, tokens)

            long = [send(protocol, long_tokens) for protocol in PROTOCOLS for _ in range(4)]
            short = [client(protocol, number) for protocol in PROTOCOLS for number in range(clients_each)]
            await asyncio.gather(*long, *short)

    with ThreadPoolExecutor(1, "fleet-load") as executor:
        running = executor.submit(asyncio.run, load())
        try:
            while not enough.wait(0.1) and not running.done():
                pass
            traffic.began = time.monotonic()
            event()
        finally:
            traffic.over = time.monotonic()
            over.set()
        running.result()
    return traffic
