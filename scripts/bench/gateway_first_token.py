#!/usr/bin/env python3
"""Measures what the gateway adds to the time to the first token, in pairs: the same request over gRPC and through the
gateway, one at a time, in random turns.

A real server with the simulated engine makes the first token of every answer in the same time, so that what differs
is the way there and back. Both sides keep their connection (the gateway's own to Triton, too); a request over gRPC is a
stream of its own on it, as the gateway's are. One asyncio process asks both. The median of the differences and its
95 % interval (by order statistics) say what is added; a program beside it shifts both sides of a pair. What Python's
gRPC client costs itself is part of the gRPC side. Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2 as pb

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.gateway import messages
from bench.gateway_cpu import gateway
from bench.results import write_results
from bench.simulated_model import serving
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import Failure, run_main

ANSWER = {"temperature": 0, "max_tokens": 2, "ignore_eos": True}
WARM = 50


class OverGrpc:
    """Plain gRPC to Triton."""

    def __init__(self, target: str) -> None:
        channel = grpc.aio.insecure_channel(target)
        self._method = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )

    async def first_s(self, run: str, number: int) -> float:
        """Ask, and read all; seconds until the first token."""
        request = pb.ModelInferRequest(model_name="llm")
        given = {
            "messages": json.dumps(messages(run, number)),
            "sampling_parameters": json.dumps(ANSWER | {"stream": True}),
        }
        for name, value in given.items():
            request.inputs.append(pb.ModelInferRequest.InferInputTensor(name=name, datatype="BYTES", shape=[1]))
            request.raw_input_contents.append(len(value).to_bytes(4, "little") + value.encode())
        began, first = time.perf_counter(), 0.0
        call = self._method()
        await call.write(request)
        await call.done_writing()
        while (response := await call.read()) is not grpc.aio.EOF:
            if response.error_message:
                raise Failure(f"the model answers {response.error_message!r}.")
            first = first or time.perf_counter() - began
        return first


class OverHttp:
    """The gateway's OpenAI stream, over one kept connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def first_s(self, run: str, number: int) -> float:
        """Ask, and read all; seconds until the first token: the role comes in an event of its own before it."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        asked = {"model": "llm", "messages": messages(run, number), "stream": True, **ANSWER}
        body = json.dumps(asked).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        began, first, read = time.perf_counter(), 0.0, b""
        writer.write(head + body)
        while not read.endswith(b"0\r\n\r\n"):
            part = await reader.read(1 << 16)
            if not part:
                raise Failure(f"a stream of the gateway broke off after {read[-300:]!r}.")
            read += part
            if not first and read.count(b'"content":"') > 1:
                first = time.perf_counter() - began
        if b"[DONE]" not in read[-40:]:
            raise Failure(f"a stream of the gateway ends with {read[-300:]!r}.")
        return first


async def pairs(target: str, port: int, count: int, seed: int) -> list[tuple[float, float]]:
    """So many pairs in ms: over gRPC, and through the gateway."""
    sides = (OverGrpc(target), OverHttp(port))
    chance = random.Random(seed)
    found = []
    for number in range(WARM + count):
        taken = [0.0, 0.0]
        for side in chance.sample((0, 1), 2):
            taken[side] = 1000 * await sides[side].first_s(f"{seed}.{side}", number)
        found.append((taken[0], taken[1]))
    return found[WARM:]


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median and its 95 % confidence interval, of whatever distribution: ranks by the normal approximation of the
    binomial, so of some dozens of values or more.
    """
    ordered, half = sorted(values), 0.98 * math.sqrt(len(values))  # 1.96 · √n / 2
    low, high = math.floor(len(ordered) / 2 - half), math.ceil(len(ordered) / 2 + half)
    return statistics.median(ordered), ordered[max(low, 0)], ordered[min(high, len(ordered) - 1)]


def differences(found: Sequence[Sequence[tuple[float, float]]]) -> list[float]:
    """What the gateway added in each pair."""
    return [ours - plain for each in found for plain, ours in each]


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", type=types.at_least(20), default=500, help="of each repeat (default: %(default)s)")
    parser.add_argument("--repeats", type=types.count, default=3, help="each with a new gateway (default: %(default)s)")
    parser.add_argument("--step-ms", type=types.not_negative, default=10.0, help="of the engine (default: %(default)s)")
    parser.add_argument("--output", type=types.output_file, metavar="FILE", help="every pair, as JSON")
    options = parser.parse_args(arguments)
    engine = {"step_ms": options.step_ms, "prefill_us_per_token": 0.0, "decode_us_per_sequence": 0.0}
    found: list[list[tuple[float, float]]] = []
    print("| run | pairs | gRPC, ms | gateway, ms | added, ms (95 % of the median) |")
    print("|---|---|---|---|---|", flush=True)

    def row(name: str, seen: Sequence[tuple[float, float]]) -> None:
        middle, low, high = median_interval(differences([seen]))
        plain, ours = (statistics.median(side) for side in zip(*seen, strict=True))
        print(
            f"| {name} | {len(seen)} | {plain:.2f} | {ours:.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) |", flush=True
        )

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(ENGINE, engine))
        for repeat in range(options.repeats):
            with gateway(server.grpc_url, REPOSITORY / "gateway") as (_, port):
                found.append(asyncio.run(pairs(server.grpc_url, port, options.pairs, repeat)))
            row(str(repeat + 1), found[-1])
    row("all", [pair for each in found for pair in each])
    if options.output:
        shown = [[[round(value, 3) for value in pair] for pair in each] for each in found]
        write_results(
            options.output,
            "ms to the first token, over gRPC and through the gateway, in pairs",
            "scripts/bench/gateway_first_token.py",
            options,
            load_average=os.getloadavg(),
            added_ms=dict(zip(("median", "least", "most"), median_interval(differences(found)), strict=True)),
            pairs=shown,
        )
    return 0


if __name__ == "__main__":
    run_main(main)
