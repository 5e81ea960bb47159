#!/usr/bin/env python3
"""Measures what the gateway costs: tokens/s and time to the first token over plain gRPC, and its CPU per token.

A real server with the real model answers the same kind of chats in turns: over gRPC, and through the gateway as an
OpenAI stream, and over Triton's own HTTP (generate_stream). All clients are asyncio programs in processes of their own
that read every response. No prompt is used twice, and who begins changes. Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.results import write_results
from bench.simulated_model import write_model
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import Failure, run_main
from inflight_tools.server.server import Ports, Server, ServerConfig

_TICKS = os.sysconf("SC_CLK_TCK")
START_S = 20.0


def cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def messages(run: str, number: int) -> list[dict[str, str]]:
    """A chat that was not asked before. All are as long and differ from the same token on, whatever the run is called:
    else the prefix cache would save one side more than another.
    """
    digits = int.from_bytes(hashlib.sha256(f"{run}.{number}".encode()).digest()[:4], "big") % 10**8
    return [{"role": "user", "content": f"{digits:08}: tell me a story of the sea."}]


async def one_http(port: int, path: bytes, body: bytes, end: bytes) -> float:
    """One stream, read until `end`; seconds until its first event."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.perf_counter()
    about = b"host: x\r\ncontent-type: application/json\r\ncontent-length: %d" % len(body)
    writer.write(b"POST %s HTTP/1.1\r\n%s\r\n\r\n" % (path, about) + body)
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        said = await reader.read(500)
        raise Failure(f"{path.decode()} answers {head.splitlines()[0].decode()}: {said.decode(errors='replace')}")
    first, tail = 0.0, b""
    while end not in tail:
        part = await reader.read(65536)
        if not part:
            raise Failure(f"a stream of {path.decode()} broke off.")
        first = first or time.perf_counter() - began
        tail = (tail + part)[-64:]
    writer.close()
    return first


async def client(kind: str, target: str, run: str, streams: int, requests: int, tokens: int) -> None:
    """`requests` of each of `streams`; prints seconds, and each request's time to the first token, as JSON."""
    firsts: list[float] = []
    options = {"temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    if kind == "http":

        async def ask(number: int) -> float:
            body = {"model": "llm", "messages": messages(run, number), "stream": True, **options}
            return await one_http(int(target), b"/v1/chat/completions", json.dumps(body).encode(), b"[DONE]")

    elif kind == "generate_stream":

        async def ask(number: int) -> float:
            body = {"messages": json.dumps(messages(run, number)), "stream": True, **options}
            path = b"/v2/models/llm/generate_stream"
            return await one_http(int(target), path, json.dumps(body).encode(), b"\r\n0\r\n\r\n")

    else:
        import grpc
        from tritonclient.grpc import service_pb2 as pb

        channel = grpc.aio.insecure_channel(target)
        method = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )

        async def ask(number: int) -> float:
            message = pb.ModelInferRequest(model_name="llm")
            given = {
                "messages": json.dumps(messages(run, number)),
                "sampling_parameters": json.dumps(options | {"stream": True}),
            }
            for name, value in given.items():
                message.inputs.append(pb.ModelInferRequest.InferInputTensor(name=name, datatype="BYTES", shape=[1]))
                message.raw_input_contents.append(len(value).to_bytes(4, "little") + value.encode())
            began, first = time.perf_counter(), 0.0
            call = method()
            await call.write(message)
            await call.done_writing()
            while (response := await call.read()) is not grpc.aio.EOF:
                if response.error_message:
                    raise Failure(f"the model answers {response.error_message!r}.")
                first = first or time.perf_counter() - began
            return first

    async def stream(number: int) -> None:
        for turn in range(requests):
            firsts.append(await ask(number * requests + turn))

    began = time.perf_counter()
    await asyncio.gather(*(stream(number) for number in range(streams)))
    print(json.dumps({"seconds": time.perf_counter() - began, "firsts": firsts}))


def turn(kind: str, target: str, run: str, streams: int, options: argparse.Namespace) -> tuple[float, float]:
    """Tokens/s, and the median time to the first token in ms."""
    numbers = [str(each) for each in (streams, options.requests, options.tokens)]
    done = subprocess.run(
        [sys.executable, __file__, "--client", kind, target, run, *numbers],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise Failure(f"the {kind} client failed: {done.stderr.strip()[-300:]}")
    found = json.loads(done.stdout)
    return streams * options.requests * options.tokens / found["seconds"], 1000 * statistics.median(found["firsts"])


def wait_ready(port: int) -> None:
    """Until the gateway is ready. Raises `Failure`."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise Failure("the gateway is not ready.")


Figures = dict[str, list[float]]
"""By name: of each repeat."""


def measured(targets: Mapping[str, str], streams: int, gateway: int, options: argparse.Namespace) -> Figures:
    """Every arm in turns: two ratios of tokens/s, what the gateway adds to the first token (ms), and its CPU per token
    (µs); behind them the tokens/s and times to the first token that they are made of.
    """
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in targets}
    costs = []
    for repeat in range(options.repeats):
        for kind in list(targets)[:: 1 if repeat % 2 else -1]:
            before = cpu_s(gateway)
            found[kind].append(turn(kind, targets[kind], f"{kind}{streams}.{repeat}", streams, options))
            if kind == "http":
                costs.append(1e6 * (cpu_s(gateway) - before) / (streams * options.requests * options.tokens))
    pairs = list(zip(found["http"], found["generate_stream"], found["grpc"], strict=True))
    return {
        "gateway over gRPC": [ours[0] / plain[0] for ours, _, plain in pairs],
        "generate_stream over gRPC": [other[0] / plain[0] for _, other, plain in pairs],
        "added TTFT, ms": [ours[1] - plain[1] for ours, _, plain in pairs],
        "CPU a token, µs": costs,
        **{f"{kind} tokens/s": [each[0] for each in several] for kind, several in found.items()},
        **{f"{kind} TTFT p50, ms": [each[1] for each in several] for kind, several in found.items()},
    }


def cells(figures: Figures) -> str:
    """The first four as a row of the table: median, least and most."""
    return " | ".join(
        f"{statistics.median(each):.{digits}f} ({min(each):.{digits}f} to {max(each):.{digits}f})"
        for each, digits in zip(figures.values(), (2, 2, 1, 0), strict=False)
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Our options."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--streams", type=types.counts, default="1,8,32", metavar="N,N", help="at once (default: %(default)s)"
    )
    parser.add_argument("--requests", type=types.count, default=3, help="of each stream (default: %(default)s)")
    parser.add_argument("--tokens", type=types.count, default=64, help="of each answer (default: %(default)s)")
    parser.add_argument("--repeats", type=types.count, default=3, help="in turns (default: %(default)s)")
    parser.add_argument("--engine", type=types.engine, default=str(ENGINE), metavar="DIR", help="engine directory")
    parser.add_argument(
        "--output", type=types.output_file, metavar="FILE", help="JSON file for every figure (default: none)"
    )
    return parser.parse_args(arguments)


@contextlib.contextmanager
def both(engine: Path) -> Iterator[tuple[dict[str, str], int]]:
    """A ready server with a gateway before it: where each arm's client goes, and the gateway's process."""
    port = Ports.free().http
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY / "gateway"))
    with contextlib.ExitStack() as stack:
        repository = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inflight-bench-")))
        write_model(repository, engine, None, {})
        server = stack.enter_context(Server(ServerConfig(repository=repository)))
        server.wait_ready()
        command = [sys.executable, "-m", "inflight_gateway", "--triton", server.grpc_url, "--port", str(port)]
        gateway = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            wait_ready(port)
            http = server.http_url.rpartition(":")[2]
            yield {"grpc": server.grpc_url, "http": str(port), "generate_stream": http}, gateway.pid
        finally:
            gateway.terminate()
            gateway.kill()
            gateway.wait(10)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--client"]:
        kind, target, run, *numbers = given[1:]
        streams, requests, tokens = map(int, numbers)
        asyncio.run(client(kind, target, run, streams, requests, tokens))
        return 0
    options = parse(given)
    found: dict[str, Figures] = {}
    try:
        with both(options.engine) as (targets, pid):
            print("| at once | gateway over gRPC | generate_stream over it | first token, added ms | CPU a token, µs |")
            print("|---|---|---|---|---|", flush=True)
            turn("http", targets["http"], "warm", 4, options)
            for streams in options.streams:
                found[str(streams)] = measured(targets, streams, pid, options)
                print(f"| {streams} | {cells(found[str(streams)])} |", flush=True)
    finally:  # what was measured before it was stopped, or before the server was lost, is measured
        if options.output is not None and found:
            what = "a chat through the gateway and over generate_stream against plain gRPC, by the streams at once"
            write_results(options.output, what, "python scripts/bench/gateway.py", options, streams=found)
    return 0


if __name__ == "__main__":
    run_main(main)
