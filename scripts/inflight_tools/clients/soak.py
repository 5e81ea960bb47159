"""The clients of a soak: they stream and wait, over gRPC and HTTP, leave early, read slowly, and ask nonsense."""

from __future__ import annotations

import asyncio
import random
import struct
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from inflight_tools.fuzz.inputs import Fuzzer
from inflight_tools.server.server import Server

CLIENTS = 24
LIMIT_S = 120.0  # an answer that takes longer has no end
KINDS = ("stream", "stream", "whole", "leave", "slow", "long prompt", "nonsense", "http", "http leave")


class Clients:
    """What keeps the server busy, and what came of it."""

    def __init__(self, server: Server, seed: int, clients: int = CLIENTS) -> None:
        self._server = server
        self._clients = clients
        self._chance = random.Random(seed)
        self._fuzzer = Fuzzer(seed)
        self._numbers = 0
        self.ends: Counter[str] = Counter()
        self.stopping = False

    async def run(self) -> None:
        """Until `stopping`."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT_S)) as session:
            await asyncio.gather(*(self._client(session) for _ in range(self._clients)))

    async def greatest(self) -> None:
        """The largest prompts that the model looks at: what they cost once is no growth later."""
        async with grpc.aio.insecure_channel(self._server.grpc_url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            await asyncio.gather(*(self._read(stub, _largest(), 0, 0.0) for _ in range(4)))

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self.stopping:
            # A channel for a while, as clients come and go.
            async with grpc.aio.insecure_channel(self._server.grpc_url) as channel:
                stub, left = service_pb2_grpc.GRPCInferenceServiceStub(channel), 50
                while left and not self.stopping:
                    await self._one(stub, session)
                    left -= 1

    async def _one(self, stub: Any, session: aiohttp.ClientSession) -> None:
        kind = self._chance.choice(KINDS)
        self._numbers += 1
        try:
            sending = self._http(session, kind) if kind.startswith("http") else self._grpc(stub, kind)
            self.ends[f"{kind}: {await asyncio.wait_for(sending, LIMIT_S)}"] += 1
        except (TimeoutError, asyncio.TimeoutError):
            self.ends[f"{kind}: no end"] += 1
        except (grpc.aio.AioRpcError, aiohttp.ClientError) as error:
            self.ends[f"{kind}: {type(error).__name__}"] += 1

    async def _grpc(self, stub: Any, kind: str) -> str:
        leave_at = self._chance.randint(1, 20) if kind == "leave" else 0
        return await self._read(stub, self._request(kind), leave_at, 0.05 if kind == "slow" else 0.0)

    @staticmethod
    async def _read(stub: Any, request: pb.ModelInferRequest, leave_at: int, pause_s: float) -> str:
        """Send one request and read it to its end, or leave at a response."""
        ended = asyncio.Event()

        async def outgoing() -> AsyncIterator[pb.ModelInferRequest]:
            yield request
            await ended.wait()

        call = stub.ModelStreamInfer(outgoing())
        count, how = 0, "nothing"
        async for answer in call:
            count += 1
            final = answer.infer_response.parameters["triton_final_response"].bool_param
            if final or answer.error_message:
                how = "refused" if answer.error_message else "answer"
                ended.set()
            elif count == leave_at:
                call.cancel()
                return "left"
            elif pause_s:
                await asyncio.sleep(pause_s)
        return how

    def _request(self, kind: str) -> pb.ModelInferRequest:
        if kind == "nonsense":
            while True:
                case = self._fuzzer.case(self._numbers)
                self._numbers += 1
                if case.grpc is not None and case.kind != "wrong for core":
                    return case.grpc
        size = self._chance.randint(1000, 3000) if kind == "long prompt" else self._chance.randint(3, 40)
        ids = [self._chance.randrange(1000, 40_000) for _ in range(size)]
        return make_request(ids, self._chance.randint(4, 60), stream=kind != "whole")

    async def _http(self, session: aiohttp.ClientSession, kind: str) -> str:
        body = {"text_input": f"number {self._numbers}", "max_tokens": self._chance.randint(4, 60), "stream": True}
        async with session.post(f"http://{self._server.http_url}/v2/models/llm/generate_stream", json=body) as answer:
            if kind == "http leave":
                await answer.content.readline()
                return "left"
            await answer.read()
            return "answer" if answer.status == 200 else "refused"


def _largest() -> pb.ModelInferRequest:
    """A text of a mebibyte, which is tokenized before it is found too long for the context."""
    text = b"number " * ((1 << 20) // 7)
    request = pb.ModelInferRequest(model_name="llm")
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(struct.pack("<I", len(text)) + text)
    return request


def make_request(ids: list[int], max_tokens: int, stream: bool) -> pb.ModelInferRequest:
    """A prompt of token ids."""
    request = pb.ModelInferRequest(model_name="llm")
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, kind, values in (
        ("input_ids", np.int32, ids),
        ("max_tokens", np.int32, [max_tokens]),
        ("stream", np.bool_, [stream]),
    ):
        array = np.array(values, dtype=kind)
        request.inputs.add(name=name, datatype="BOOL" if kind is np.bool_ else "INT32", shape=[len(values)])
        request.raw_input_contents.append(array.tobytes())
    return request


async def canary(server: Server) -> bytes:
    """The raw outputs of one request, sent while nothing else is."""
    async with grpc.aio.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter([make_request([500, 600, 700], 24, stream=False)]))
        return b"".join([b"".join(answer.infer_response.raw_output_contents) async for answer in call])
