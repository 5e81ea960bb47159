#!/usr/bin/env python3
"""What Ray Serve costs: streamed completions through deploy/ray, and through the gateway before the same Triton.

In turns: CPU of Ray's proxy and replica, or of the gateway, for a token, and time to the first one. Ray's environment
is that of $INFLIGHT_RAY_PYTHON, with the packages that deploy/ray/README.md names. Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.arms import cpu_seconds
from bench.fleet_load import Clients, Request
from bench.gateway_cpu import gateway
from bench.ray_serve import RayServe, serving
from bench.recipes import Balancer
from bench.results import write_results
from bench.simulated_model import write_model
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import Failure, run_main


def grpc_of(ray: RayServe) -> str:
    """Where the only replica's Triton listens. Raises `Failure`."""
    for server in ray.servers():
        found = re.search(r"--grpc-port=(\d+)", " ".join(server.cmdline()))
        if found:
            return f"127.0.0.1:{found[1]}"
    raise Failure("no replica has a Triton.")


def rays_own() -> list[int]:
    """Ray's HTTP proxy and its replicas."""
    titles = ((process.pid, " ".join(process.info["cmdline"] or ())) for process in psutil.process_iter(["cmdline"]))
    return [pid for pid, title in titles if title.startswith(("ray::ProxyActor", "ray::ServeReplica"))]


def turn(port: int, pids: Sequence[int], streams: int, options: argparse.Namespace, name: str) -> dict[str, float]:
    """`streams` at once, each some requests one after another. Raises `Failure`."""

    async def one(clients: Clients, number: int) -> list[Request]:
        wanted = [Request("openai", f"{name} {number} {at}", options.tokens) for at in range(options.requests)]
        return [await clients.send(request) for request in wanted]

    async def work() -> list[Request]:
        async with Clients(Balancer("", "", f"127.0.0.1:{port}", ""), channels=0) as clients:
            found = await asyncio.gather(*(one(clients, number) for number in range(streams)))
            return [request for requests in found for request in requests]

    before = sum(map(cpu_seconds, pids))
    requests = asyncio.run(work())
    used = sum(map(cpu_seconds, pids)) - before
    lost = [request for request in requests if not request.whole]
    if lost:
        raise Failure(f"{len(lost)} of {len(requests)} requests failed: {lost[0].error}")
    return {
        "cpu_ms_per_token": 1000 * used / sum(request.got for request in requests),
        "ttft_ms": statistics.median(request.ttft_ms for request in requests),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Medians and spread over the repeats."""
    lines = ["| streams | way | CPU for a token, ms | TTFT p50, ms |", "|---|---|---|---|"]
    for key in dict.fromkeys((row["streams"], row["way"]) for row in rows):
        these = [row for row in rows if (row["streams"], row["way"]) == key]
        cells = []
        for name, digits in (("cpu_ms_per_token", 3), ("ttft_ms", 1)):
            values = sorted(row[name] for row in these)
            middle = statistics.median(values)
            cells.append(f"{middle:.{digits}f} ({values[0]:.{digits}f} to {values[-1]:.{digits}f})")
        lines.append(f"| {key[0]} | {key[1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option("--streams", type=types.counts, default="1,16,48", metavar="N,N", help="at once (default: %(default)s)")
    option("--requests", type=types.count, default=2, help="of each stream (default: %(default)s)")
    option("--tokens", type=types.count, default=60, help="of each request (default: %(default)s)")
    option("--repeats", type=types.count, default=3, help="in turns (default: %(default)s)")
    option("--output", type=types.output_file, metavar="FILE", help="every figure, as JSON")
    options = parser.parse_args(arguments)
    python = os.environ.get("INFLIGHT_RAY_PYTHON")
    if not python:
        raise Failure("set INFLIGHT_RAY_PYTHON to the Python of an environment with ray[serve]: deploy/ray/README.md.")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="inflight-ray-") as name:
        folder = Path(name)
        write_model(folder / "repository", ENGINE, {"step_ms": 20, "max_running": 64}, {})
        with (
            serving(folder, Path(python), folder / "repository", {"max_replicas: 4": "max_replicas: 1"}, 1) as ray,
            gateway(grpc_of(ray), REPOSITORY / "gateway") as (pid, port),
        ):
            ways = {"Ray Serve": (ray.port, rays_own()), "gateway": (port, [pid])}
            for streams in options.streams:
                for repeat in range(options.repeats):
                    turns = list(ways.items())
                    for way, (at, pids) in turns if repeat % 2 else reversed(turns):
                        found = turn(at, pids, streams, options, f"{way} {streams} {repeat}")
                        rows.append({"streams": streams, "way": way, "repeat": repeat, **found})
                        print(rows[-1], file=sys.stderr, flush=True)
    if options.output is not None:
        about = "streamed completions through Ray Serve and through the gateway, before the same Triton"
        write_results(options.output, about, "python scripts/bench/ray_cost.py", options, rows=rows)
    print(table(rows))
    return 0


if __name__ == "__main__":
    run_main(main)
