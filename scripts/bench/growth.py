#!/usr/bin/env python3
"""Measures what a token costs as work grows: more streams, longer prompts, longer answers.

Streams grow on the `simulated` engine as fast as it can go, so that the cost is the server's and the backend's, and on
OpenVINO as far as the engine takes them; prompts and answers grow on OpenVINO. Through Triton and gRPC, with the client
of the peers, which shares the cores. CPU and memory are of the server's processes alone. Exit status: 0 done, 1 an
error.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.peer_client import Question
from bench.peer_inflight import InflightPeer
from bench.peers import questions
from bench.results import write_results
from build_engine import svg
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import run_main
from inflight_tools.load.lengths import parse_lengths
from inflight_tools.load.perf_analyzer import Load
from inflight_tools.load.profile_export import Request

SIMULATED = {
    "engine": "simulated",
    "max_running": "2048",
    "max_queue_size": "8192",
    "engine_options": {"real_time": False, "max_running": 2048, "blocks": 65_536},
}
STREAMS = (1, 4, 16, 64, 256, 1024, 2048)
OPENVINO_STREAMS = (1, 4, 16, 64)
PROMPTS = (16, 64, 250, 1000, 2000, 4000, 8000)
ANSWERS = (16, 64, 256, 1024, 2048)


def row(name: str, size: int, requests: Sequence[Request], cpu_s: float, peer: InflightPeer) -> dict[str, Any]:
    """One point."""
    tokens = sum(request.tokens for request in requests)
    seconds = (max(request.ended for request in requests) - min(request.sent for request in requests)) / 1e9
    ttfts = sorted((request.ttft or 0) / 1e6 for request in requests)
    spans = [(request.arrivals[-1][0] - request.arrivals[0][0]) / 1e6 for request in requests]
    after = sum(request.tokens - request.arrivals[0][1] for request in requests)
    made = {
        "of": name,
        "size": size,
        "requests": len(requests),
        "tokens_per_s": round(tokens / seconds, 1),
        "cpu_us_per_token": round(1e6 * cpu_s / tokens, 1),
        "memory_mb": round(peer.memory() / 2**20),
        "ttft_p50_ms": round(ttfts[len(ttfts) // 2], 2),
        "tpot_ms": round(sum(spans) / after, 3) if after else None,
        "tokens_per_response": round(tokens / sum(len(request.arrivals) for request in requests), 2),
    }
    print(made, flush=True)
    return made


def streams(name: str, engine: Path, parameters: dict[str, Any], sizes: Sequence[int], tokens: int) -> list[Any]:
    """Points over the number of streams, each with so many tokens and three rounds of requests."""
    peer = InflightPeer(f"growth {name}", "int8", engine, parameters)
    peer.start()
    rows = []
    try:
        texts = questions(engine, parse_lengths("uniform:16-48", 0), tokens, 3)
        for size in sizes:
            asked = list(itertools.islice(texts, max(8, 3 * size if size < 256 else 2 * size)))
            before = peer.cpu_s()
            requests = peer.drive(asked, Load(concurrency=size), name)
            rows.append(row(f"streams, {name}", size, requests, peer.cpu_s() - before, peer))
    finally:
        peer.stop()
    return rows


def lengths(engine: Path, repeats: int) -> list[Any]:
    """Points over the length of prompts (8 tokens of answer) and of answers (short prompts), one stream."""
    peer = InflightPeer("growth lengths", "int8", engine)
    peer.start()
    rows = []
    try:
        one = Load(concurrency=1)
        peer.drive([Question("How are you?", 8)], one, "warm")
        points = [("prompt tokens", size, size, 8) for size in PROMPTS]
        points += [("answer tokens", size, 32, size) for size in ANSWERS]
        for name, size, prompt, answer in points:
            asked = questions(engine, parse_lengths(str(prompt), 0), answer, size)
            before = peer.cpu_s()
            requests = peer.drive(list(itertools.islice(asked, repeats)), one, name)
            rows.append(row(name, size, requests, peer.cpu_s() - before, peer))
    finally:
        peer.stop()
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option(
        "--engine", type=types.openvino_engine, default=str(ENGINE), metavar="DIR", help="engine directory of OpenVINO"
    )
    option(
        "--tokens", type=types.count, default=128, metavar="N", help="of the answers while streams grow (default: 128)"
    )
    option("--repeats", type=types.count, default=3, metavar="N", help="requests per length (default: %(default)s)")
    option("--output", type=types.output_file, default=REPOSITORY / "docs" / "benchmarks" / "growth.json")
    options = parser.parse_args(arguments)
    rows = streams("simulated", options.engine, SIMULATED, STREAMS, options.tokens)
    rows += streams("openvino", options.engine, {}, OPENVINO_STREAMS, 64)
    rows += lengths(options.engine, options.repeats)
    report(options, rows)
    return 0


def report(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """The JSON file, and a chart for each kind of growth."""
    what = "tokens/s, CPU and memory of the server's processes as streams, prompts and answers grow"
    write_results(options.output, what, "python scripts/bench/growth.py", options, rows=rows)
    drawn = {
        "streams": ("streams", "tokens_per_s", "tokens/s"),
        "cpu": ("streams", "cpu_us_per_token", "CPU µs per token"),
        "prompts": ("prompt tokens", "ttft_p50_ms", "time to first token, ms"),
        "answers": ("answer tokens", "tpot_ms", "time per output token, ms"),
    }
    for file, (kind, figure, title) in drawn.items():
        series = [
            svg.Series(name, [(each["size"], each[figure]) for each in rows if each["of"] == name])
            for name in dict.fromkeys(each["of"] for each in rows if each["of"].startswith(kind))
        ]
        if not series:
            continue
        sizes, values = zip(*(point for one in series for point in one.points), strict=True)
        x, y = svg.Axis(kind, logarithmic=True, ticks=sizes), svg.fitting(title, values)
        chart = svg.chart(f"{title} against {kind}", x, y, series)
        options.output.with_name(f"growth_{file}.svg").write_text(chart, encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
