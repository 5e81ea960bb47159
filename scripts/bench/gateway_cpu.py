#!/usr/bin/env python3
"""Measures the gateway's own CPU: what a request costs, what a response of the model, and so what a token.

The gateway stands between a Triton of ours, which replays responses of an Inflight model at a steady pace, and a client
that reads every stream; each is a process of its own, and only the gateway's CPU time counts. `--served` takes a real
tritonserver with the simulated engine instead, which merges tokens as it finds right. `--workers 1,2` has gateways of
one process and of two take turns. Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.gateway import cpu_s, wait_ready
from bench.simulated_model import serving
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import Failure, run_main
from inflight_tools.server.server import Ports

WORD = " a word"  # one token of the replayed text
LONGEST_S = 240.0
_INFO = {"release": "1", "engine": "replayed", "engine_version": "1", "context": 1 << 20, "chat": True}


def response(text: str, tokens: int, finish: str, info: str = "") -> bytes:
    """A response as a model on Triton sends it, serialized."""
    found = pb.ModelInferResponse(model_name="llm", model_version="1", id="0123456789abcdef01234567")
    found.parameters["triton_final_response"].bool_param = bool(finish)
    given = {"text_output": text, "finish_reason": finish, "stop_reason": ""} | ({"model_info": info} if info else {})
    for name, value in given.items():
        found.outputs.add(name=name, datatype="BYTES", shape=[1])
        found.raw_output_contents.append(len(value.encode()).to_bytes(4, "little") + value.encode())
    for name, number in {"num_input_tokens": 24, "num_cached_tokens": 0, "num_output_tokens": tokens}.items():
        found.outputs.add(name=name, datatype="UINT32", shape=[1])
        found.raw_output_contents.append(number.to_bytes(4, "little"))
    return bytes(pb.ModelStreamInferResponse(infer_response=found).SerializeToString())


async def replay(port: int, responses: int, tokens: int, gap_s: float) -> None:
    """Serve until killed: every answer has `responses` responses of `tokens` tokens, one in `gap_s`."""
    middle, last = response(WORD * tokens, tokens, ""), response(WORD * tokens, tokens, "length")

    async def index(_request: bytes, _context: Any) -> bytes:
        found = pb.RepositoryIndexResponse()
        found.models.add(name="llm", version="1", state="READY")
        return bytes(found.SerializeToString())

    async def config(_request: bytes, _context: Any) -> bytes:
        found = pb.ModelConfigResponse()
        found.config.name, found.config.backend = "llm", "inflight"
        return bytes(found.SerializeToString())

    async def infer(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        request = await anext(requests)
        if b"return_model_info" in request:
            yield response("", 0, "stop", json.dumps(_INFO))
            return
        at = time.monotonic()
        for number in range(responses):
            at += gap_s
            await asyncio.sleep(max(at - time.monotonic(), 0))
            yield last if number == responses - 1 else middle

    handlers = {
        "RepositoryIndex": grpc.unary_unary_rpc_method_handler(index),
        "ModelConfig": grpc.unary_unary_rpc_method_handler(config),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(infer),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


async def read_all(port: int, streams: int, requests: int, tokens: int) -> None:
    """`requests` chats of each stream over a connection of its own; prints how many events and tokens came."""
    events = counted = 0

    async def one(number: int) -> None:
        nonlocal events, counted
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(number / streams / 5)  # so that they do not come in step
        for turn in range(requests):
            asked: dict[str, Any] = {"model": "llm", "stream": True, "stream_options": {"include_usage": True}}
            asked |= {"max_tokens": tokens, "ignore_eos": True, "temperature": 0}
            asked["messages"] = [{"role": "user", "content": f"{number}.{turn}: tell me a story of the sea."}]
            body = json.dumps(asked).encode()
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
            writer.write(body)
            read = b""
            while not read.endswith(b"0\r\n\r\n"):
                part = await reader.read(1 << 16)
                if not part:
                    raise Failure(f"a stream of the gateway broke off after {read[-300:]!r}.")
                read += part
            if b"[DONE]" not in read[-40:]:
                raise Failure(f"a stream of the gateway ends with {read[-300:]!r}.")
            events += read.count(b'"content":"') - 1  # one has the role alone
            counted += int(read.rpartition(b'"completion_tokens":')[2].partition(b",")[0])
        writer.close()

    await asyncio.gather(*(one(number) for number in range(streams)))
    print(json.dumps([events, counted]))


def child(*arguments: object) -> list[str]:
    """The command of this program's other roles."""
    return [sys.executable, __file__, *map(str, arguments)]


@contextlib.contextmanager
def gateway(triton: str, source: Path, workers: int = 1) -> Iterator[tuple[int, int]]:
    """A ready gateway: its process id and port."""
    port = Ports.free().http
    environment = dict(os.environ, PYTHONPATH=str(source))
    command = [sys.executable, "-m", "inflight_gateway", "--triton", triton, "--port", str(port)]
    command += ["--workers", str(workers)] if workers > 1 else []
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_ready(port)
        yield process.pid, port
    finally:
        process.send_signal(signal.SIGINT)  # its workers end with it
        process.wait(10)


def gateway_cpu_s(pid: int) -> float:
    """CPU time of a gateway so far, with its workers."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return sum(cpu_s(each) for each in (pid, *map(int, children)))


def measured(pid: int, port: int, streams: int, requests: int, tokens: int) -> tuple[float, int, int, float]:
    """CPU seconds of the gateway, the events and tokens that came, and seconds, for so many chats."""
    before, began = gateway_cpu_s(pid), time.monotonic()
    command = child("--read", port, streams, requests, tokens)
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=LONGEST_S)
    if done.returncode:
        raise Failure(f"the client failed: {done.stderr.strip()[-300:]}")
    events, counted = json.loads(done.stdout)
    return gateway_cpu_s(pid) - before, events, counted, time.monotonic() - began


def row(what: str, found: Sequence[tuple[float, int, int, float]], chats: int) -> str:
    """One line of the table: medians, least and most."""
    costs = [
        [1e6 * cpu / by for cpu, by in ((each[0], number) for each, number in zip(found, numbers, strict=True))]
        for numbers in ([chats] * len(found), [each[1] for each in found], [each[2] for each in found])
    ]
    cells = [f"{statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f})" for each in costs]
    merged = statistics.median(each[2] / each[1] for each in found)
    rate = statistics.median(each[2] / each[3] for each in found)
    return f"| {what} | {merged:.1f} | {rate:.0f} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--replay"]:
        asyncio.run(replay(int(given[1]), int(given[2]), int(given[3]), float(given[4])))
        return 0
    if given[:1] == ["--read"]:
        port, streams, requests, tokens = map(int, given[1:])
        asyncio.run(read_all(port, streams, requests, tokens))
        return 0
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--streams", type=types.count, default=256, help="at once (default: %(default)s)")
    parser.add_argument("--requests", type=types.count, default=2, help="of each stream (default: %(default)s)")
    parser.add_argument("--responses", type=types.count, default=40, help="of each answer (default: %(default)s)")
    parser.add_argument("--tokens", type=types.count, default=4, help="of each response (default: %(default)s)")
    parser.add_argument(
        "--gap-ms", type=types.not_negative, default=220.0, help="between responses (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=types.count, default=3, help="(default: %(default)s)")
    parser.add_argument("--served", action="store_true", help="a real server with the simulated engine")
    parser.add_argument(
        "--workers", type=types.counts, default="1", metavar="N,N", help="of the gateways (default: %(default)s)"
    )
    parser.add_argument(
        "--against",
        type=types.folder_with("gateway/inflight_gateway"),
        metavar="DIR",
        help="another checkout, whose gateway takes turns",
    )
    options = parser.parse_args(given)
    print("| what | tokens per response | tokens/s | µs a chat | µs a response | µs a token |")
    print("|---|---|---|---|---|---|", flush=True)
    streams, requests, tokens = options.streams, options.requests, options.responses * options.tokens
    what = f"{streams} chats at once"
    sources = [REPOSITORY / "gateway", *([options.against / "gateway"] if options.against else [])]
    arms = [(source, workers) for source in sources for workers in options.workers]

    def turns(triton: str, what: str, how_many: int) -> None:
        """All gateways before one Triton, in turns."""
        with contextlib.ExitStack() as stack:
            started = [stack.enter_context(gateway(triton, *arm)) for arm in arms]
            found: list[list[tuple[float, int, int, float]]] = [[] for _ in arms]
            for repeat in range(options.repeats):
                for place in list(range(len(arms)))[:: 1 if repeat % 2 else -1]:
                    found[place].append(measured(*started[place], streams, how_many, tokens))
        for (source, workers), each in zip(arms, found, strict=True):
            said = what + (", the other gateway" if source != sources[0] else "")
            said += f", {workers} workers" if workers > 1 else ""
            print(row(said, each, streams * how_many), flush=True)

    if options.served:
        engine = {"real_time": False, "max_running": streams, "max_seq_len": 1 << 16, "blocks": 1 << 20}
        with serving(ENGINE, engine) as server:
            turns(server.grpc_url, f"{what}, simulated engine", requests)
        return 0
    for responses, how_many in ((1, requests * 4), (options.responses, requests)):
        port = Ports.free().grpc
        triton = subprocess.Popen(child("--replay", port, responses, options.tokens, options.gap_ms / 1000))
        try:
            turns(f"127.0.0.1:{port}", f"{what}, {responses} responses each", how_many)
        finally:
            triton.kill()
            triton.wait(10)
    return 0


if __name__ == "__main__":
    run_main(main)
