#!/usr/bin/env python3
"""Measures what clients with prompts that cannot fit cost another client: its time to first token, with and without.

Some clients send such a prompt again and again, each the next one as soon as the last is refused, while one client asks
for a single token every tenth of a second. The engine is the simulated one, so that only the way to it is measured:
the backend in this process, or with --server a real tritonserver and gRPC.

Exit status: 0 done; 1 an error (one sentence says which); 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.results import write_results
from bench.simulated_model import serving
from build_engine.arguments import Parser
from inflight.answer.stream import Reply, Stream
from inflight.backend.model import Backend
from inflight.errors import RequestError
from inflight.model.parameters import ModelConfig
from inflight.request.parse import RawRequest
from inflight_tools.clients.grpc import Connection, tensors
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE
from inflight_tools.common.report import Failure, run_main

OPTIONS = {"step_ms": 5.0}
EVERY_S = 0.1  # one question of the client that is measured
WAIT_S = 120.0
DIGITS = "0123456789"
KINDS: dict[str, tuple[str, Callable[[int], Any]]] = {  # name → (what it is, the inputs for a size in bytes)
    "text": ("text_input of digits", lambda size: {"text_input": DIGITS * (size // 10)}),
    "chat": (
        "messages of digits",
        lambda size: {"messages": json.dumps([{"role": "user", "content": DIGITS * (size // 10)}])},
    ),
    "ids": ("input_ids", lambda size: {"input_ids": [7] * (size // 4)}),
}
Ask = Callable[[], float]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Our options."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--clients", type=types.count, default=10, metavar="N", help="with such prompts (default: %(default)s)"
    )
    parser.add_argument(
        "--bytes",
        type=types.at_least(40, "a prompt would be empty"),
        default=1 << 20,
        metavar="N",
        help="of each prompt (default: 1 MiB)",
    )
    parser.add_argument(
        "--kinds", type=types.names(tuple(KINDS)), default=",".join(KINDS), metavar="K,K", help="default: %(default)s"
    )
    parser.add_argument(
        "--seconds", type=types.positive, default=10.0, metavar="S", help="of each turn (default: %(default)s)"
    )
    parser.add_argument(
        "--turns", type=types.count, default=2, metavar="N", help="with and without (default: %(default)s)"
    )
    parser.add_argument(
        "--engine",
        type=types.engine,
        default=str(ENGINE),
        metavar="DIR",
        help="with tokenizer.json (default: the served one)",
    )
    parser.add_argument("--server", action="store_true", help="through a real tritonserver")
    parser.add_argument("--json", type=types.output_file, metavar="FILE", help="write every figure there")
    parser.add_argument("--neighbours", nargs=2, metavar=("URL", "KIND"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


class _Responder:
    """A client inside this process: notes when the first token came, and tells of the end."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self.first = 0.0
        self._ended = ended

    def send(self, stream: Stream, reply: Reply, final: bool) -> None:
        """One response."""
        self.first = self.first or time.perf_counter()
        if final:
            self._ended()

    def fail(self, error: RequestError) -> None:
        """The end."""
        self._ended()

    def is_cancelled(self) -> bool:
        """Nobody leaves."""
        return False


@contextmanager
def in_process(engine: Path) -> Iterator[tuple[Ask, Callable[[str, argparse.Namespace], Callable[[], None]]]]:
    """(ask once: seconds to the first token; start neighbours of a kind: how to stop them)."""
    with tempfile.TemporaryDirectory(prefix="inflight-bench-") as name:
        (Path(name) / "engine").symlink_to(engine.absolute())
        sys.setswitchinterval(0.0005)  # as model.py
        backend = Backend(ModelConfig(engine="simulated", engine_options=OPTIONS), Path(name))
        backend.start()

        def ask() -> float:
            done = threading.Event()
            responder = _Responder(done.set)
            began = time.perf_counter()
            backend.submit(RawRequest({"text_input": [b"Hello"], "max_tokens": [1], "stream": [True]}), responder)
            if not done.wait(WAIT_S) or not responder.first:
                raise Failure("the client that is measured got no answer.")
            return responder.first - began

        def neighbours(kind: str, options: argparse.Namespace) -> Callable[[], None]:
            values = KINDS[kind][1](options.bytes)
            tensors = {
                key: value if isinstance(value, list) else [value.encode() if isinstance(value, str) else value]
                for key, value in values.items()
            }
            going = threading.Event()
            going.set()

            def again() -> None:
                if going.is_set():
                    backend.submit(RawRequest(tensors), _Responder(again))

            for _ in range(options.clients):
                again()
            return going.clear

        try:
            yield ask, neighbours
        finally:
            backend.stop()


@contextmanager
def through_server(engine: Path) -> Iterator[tuple[Ask, Callable[[str, argparse.Namespace], Callable[[], None]]]]:
    """The same over gRPC; the neighbours are a process of their own."""
    with serving(engine, OPTIONS) as server, Connection(server.grpc_url) as connection:

        def ask() -> float:
            began = time.perf_counter()
            responses = list(connection.stream("llm", {"text_input": "Hello", "max_tokens": 1, "stream": True}, False))
            return responses[0].at - began

        def neighbours(kind: str, options: argparse.Namespace) -> Callable[[], None]:
            command = [sys.executable, "-m", "bench.oversized", "--neighbours", server.grpc_url, kind]
            command += ["--clients", str(options.clients), "--bytes", str(options.bytes)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", errors="replace")
            assert process.stdout is not None
            process.stdout.readline()  # they have begun

            def stop() -> None:
                process.kill()  # its clients are in the middle of something, always
                process.wait(30.0)

            return stop

        yield ask, neighbours


def be_neighbours(options: argparse.Namespace) -> int:
    """Send such prompts until somebody ends this process. They are encoded once: the server's work is measured, and
    encoding takes a client longer than refusing takes the server.
    """
    url, kind = options.neighbours
    inputs = tensors(KINDS[kind][1](options.bytes), batched=False)

    def client() -> None:
        with Connection(url) as connection:
            while True:
                try:
                    list(connection.stream("llm", inputs, False))
                except Failure:
                    continue  # refused, as it should be

    threads = [threading.Thread(target=client, daemon=True) for _ in range(options.clients)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    print("begun", flush=True)
    for thread in threads:
        thread.join()
    return 0


def turn(ask: Ask, seconds: float) -> list[float]:
    """Seconds to the first token of each question of one turn."""
    until = time.monotonic() + seconds
    found = [ask()]  # one at least, however short the turn
    while time.monotonic() < until:
        time.sleep(EVERY_S)
        found.append(ask())
    return found


def line(name: str, found: Sequence[float]) -> str:
    """Median, 95th percentile and worst, in milliseconds."""
    ordered = sorted(found)
    high = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    figures = f"median {statistics.median(ordered) * 1e3:.1f}, 95 % {high * 1e3:.1f}, worst {ordered[-1] * 1e3:.1f} ms"
    return f"{name}: first token {figures} ({len(ordered)} requests)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = parse(arguments)
    if options.neighbours:
        return be_neighbours(options)
    figures: dict[str, dict[str, list[float]]] = {}
    with (through_server if options.server else in_process)(options.engine) as (ask, neighbours):
        turn(ask, 1.0)
        for kind in options.kinds:
            found: dict[str, list[float]] = {"without": [], "with": []}
            for _ in range(options.turns):
                found["without"] += turn(ask, options.seconds)
                stop = neighbours(kind, options)
                found["with"] += turn(ask, options.seconds)
                stop()
                time.sleep(2.0)
            print(line(f"without {KINDS[kind][0]}", found["without"]))
            print(line(f"with {options.clients} clients of {KINDS[kind][0]}", found["with"]), flush=True)
            figures[kind] = found
    if options.json:
        what = "seconds to the first token of a client, without and with others whose prompts cannot fit"
        write_results(options.json, what, "python -m bench.oversized", options, seconds=figures)
    return 0


if __name__ == "__main__":
    run_main(main)
