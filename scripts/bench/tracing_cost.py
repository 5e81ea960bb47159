#!/usr/bin/env python3
"""Measures what tracing and the access log cost: CPU time per request of tritonserver and of the backend's process.

A real server with the simulated engine answers short streams, first without either, then with the access log, then with
Triton's and Inflight's spans of one request in a hundred and of all, which a collector in this process takes. Needs
what the extra `otel` installs, in the server's Python or in the folder --sdk. Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.more_packages import server_with
from bench.simulated_model import serving
from build_engine.arguments import Parser
from inflight_tools.clients.connection import Value
from inflight_tools.clients.grpc import Connection
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE
from inflight_tools.common.report import run_main
from inflight_tools.server.find import Triton

ENGINE_OPTIONS = {"step_ms": 1.0, "max_running": 64}
_TICKS = os.sysconf("SC_CLK_TCK")


class Collector(BaseHTTPRequestHandler):
    """Takes everything and keeps nothing."""

    def do_POST(self) -> None:
        """Spans, in any form."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def ask(url: str, count: int, tokens: int) -> None:
    """`count` streams, one after another."""
    values: dict[str, Value] = {"text_input": "Once upon a time", "max_tokens": tokens, "stream": True}
    with Connection(url) as connection:
        for _ in range(count):
            for _ in connection.stream("llm", values, batched=False, idle_timeout_s=60.0):
                pass


def measure(
    options: argparse.Namespace, triton: Triton | None, environment: Mapping[str, str], arguments: Sequence[str]
) -> tuple[float, float]:
    """CPU seconds of tritonserver and of the stub per request. Raises `Failure`."""
    with serving(options.engine, ENGINE_OPTIONS, None, triton, environment=environment, arguments=arguments) as server:
        (stub,) = server.stub_pids()
        ask(server.grpc_url, 20, options.tokens)
        before = cpu_s(server.pid), cpu_s(stub)
        each = options.requests // options.clients
        threads = [
            threading.Thread(target=ask, args=(server.grpc_url, each, options.tokens)) for _ in range(options.clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        threading.Event().wait(3.0)  # the last spans leave
        done = each * len(threads)
        return (cpu_s(server.pid) - before[0]) / done, (cpu_s(stub) - before[1]) / done


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--engine", type=types.engine, default=str(ENGINE), metavar="DIR", help="a directory with tokenizer.json"
    )
    parser.add_argument(
        "--sdk",
        type=types.folder_with("opentelemetry"),
        metavar="DIR",
        help="where pip install --target DIR put the SDK",
    )
    parser.add_argument("--requests", type=types.count, default=1600, help="of each setting (default: %(default)s)")
    parser.add_argument("--clients", type=types.count, default=8, help="default: %(default)s")
    parser.add_argument("--tokens", type=types.count, default=16, help="of each answer (default: %(default)s)")
    parser.add_argument("--repeats", type=types.count, default=3, help="in turns (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.requests < options.clients:
        parser.error("--requests has to be at least --clients: each client sends its share of them")
    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    traced = {"INFLIGHT_TRACING": "1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url}
    triton = [f"--trace-config={each}" for each in ("mode=opentelemetry", f"opentelemetry,url={url}")]
    triton.append("--trace-config=level=TIMESTAMPS")
    settings: dict[str, tuple[dict[str, str], list[str]]] = {
        "off": ({}, []),
        "access log": ({"INFLIGHT_ACCESS_LOG": "1"}, []),
        "spans of 1 %": (traced, [*triton, "--trace-config=rate=100"]),
        "spans of all": (traced, [*triton, "--trace-config=rate=1"]),
    }
    folder = tempfile.TemporaryDirectory(prefix="inflight-bench-")
    with_sdk = server_with(options.sdk, Path(folder.name)) if options.sdk else None
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in settings}
    for _ in range(options.repeats):
        for name, (environment, more) in settings.items():
            found[name].append(measure(options, with_sdk, environment, more))
    print("CPU time per request in ms: median (least to most) of the runs")
    print("| setting | tritonserver | stub |\n|---|---|---|")
    for name, runs in found.items():
        columns = [sorted(1000 * value for value in column) for column in zip(*runs, strict=True)]
        cells = [f"{statistics.median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f})" for each in columns]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    collector.shutdown()
    folder.cleanup()
    return 0


if __name__ == "__main__":
    run_main(main)
