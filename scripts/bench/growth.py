#!/usr/bin/env python3
"""Measures what a token costs as work grows: more streams, longer prompts, longer answers.

Streams grow on the `simulated` engine as fast as it can go, so that the cost is the server's and the backend's, and on
OpenVINO as far as the engine takes them; prompts and answers grow on OpenVINO. What a curve's bend comes from is said
beside it (bench/growth_why.py). Through Triton and gRPC, with the client
of the peers, which shares the cores. CPU and memory are of the server's processes alone. Exit status: 0 done, 1 an
error.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench import growth_why
from bench.peer_client import Question
from bench.peer_inflight import InflightPeer
from bench.peers import questions
from bench.results import write_results
from build_engine import hf_config, svg
from build_engine.arguments import Parser
from build_engine.planning import model_size
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import Failure, run_main
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
KINDS = ("simulated", "streams", "prompts", "answers")
FIGURES = {"simulated": "tokens_per_s", "streams": "tokens_per_s", "prompts": "ttft_p50_ms", "answers": "tpot_ms"}
LEAST_POINTS = 4  # for a curve of three coefficients


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


def lengths(engine: Path, points: Sequence[tuple[str, int, int, int]], repeats: int) -> list[Any]:
    """(name, size, tokens of the prompt, of the answer) of each point, one stream."""
    peer = InflightPeer("growth lengths", "int8", engine)
    peer.start()
    rows = []
    try:
        one = Load(concurrency=1)
        peer.drive([Question("How are you?", 8)], one, "warm")
        for name, size, prompt, answer in points:
            asked = questions(engine, parse_lengths(str(prompt), 0), answer, size)
            before = peer.cpu_s()
            requests = peer.drive(list(itertools.islice(asked, repeats)), one, name)
            rows.append(row(name, size, requests, peer.cpu_s() - before, peer))
    finally:
        peer.stop()
    return rows


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Our options."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option("--engine", type=types.openvino_engine, default=str(ENGINE), metavar="DIR", help="of OpenVINO")
    option("--of", type=types.names(KINDS), default=",".join(KINDS), metavar="A,B", help="default: %(default)s")
    option("--streams", type=types.counts, default="1,4,16,64", metavar="N,N", help="of OpenVINO (%(default)s)")
    option("--prompts", type=types.counts, default="16,64,250,1000,2000,4000,8000", metavar="N,N", help="%(default)s")
    option("--answers", type=types.counts, default="16,64,256,1024,2048", metavar="N,N", help="%(default)s")
    option("--tokens", type=types.count, default=128, metavar="N", help="of answers to simulated streams (128)")
    option("--openvino-tokens", type=types.count, default=64, metavar="N", help="of answers to the others (64)")
    option("--repeats", type=types.count, default=3, metavar="N", help="requests per length (default: %(default)s)")
    option("--keep", action="store_true", help="keep what --output has of other kinds than --of, measured before")
    option("--output", type=types.output_file, default=REPOSITORY / "docs" / "benchmarks" / "growth.json")
    return parser.parse_args(arguments)


def kept(options: argparse.Namespace) -> list[Any]:
    """Rows of an earlier run. Raises `Failure` when the file is something else."""
    if not (options.keep and options.output.exists()):
        return []
    try:
        found = json.loads(options.output.read_text(encoding="utf-8"))["rows"]
        return [each for each in found if kind_of(each["of"]) not in options.of]
    except (ValueError, KeyError, TypeError):
        raise Failure(f"--output: {options.output} was not written by this script; leave --keep out.") from None


def kind_of(name: str) -> str:
    """Which of `KINDS` a row is of."""
    return {"streams, simulated": "simulated", "streams, openvino": "streams"}.get(name, name.split()[0] + "s")


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    options = parse(arguments)
    rows = kept(options)
    if "simulated" in options.of:
        rows += streams("simulated", options.engine, SIMULATED, STREAMS, options.tokens)
    if "streams" in options.of:
        rows += streams("openvino", options.engine, {}, options.streams, options.openvino_tokens)
    points = [("prompt tokens", size, size, 8) for size in options.prompts if "prompts" in options.of]
    points += [("answer tokens", size, 32, size) for size in options.answers if "answers" in options.of]
    if points:
        rows += lengths(options.engine, points, options.repeats)
    report(options, rows)
    return 0


def shape_of(engine: Path) -> growth_why.Shape:
    """The model's, as the engine directory has it."""
    config = json.loads((engine / "config.json").read_text(encoding="utf-8"))
    parameters = model_size.count_parameters(hf_config.load(engine)).active
    return growth_why.Shape.of(config, parameters, (engine / "openvino_model.bin").stat().st_size)


def reasons(rows: Sequence[dict[str, Any]], shape: growth_why.Shape) -> dict[str, str]:
    """Why each curve bends, by its name; of those with enough points."""
    made: dict[str, str] = {}
    for name in dict.fromkeys(each["of"] for each in rows):
        figure = FIGURES[kind_of(name)]
        points = [(float(each["size"]), float(each[figure])) for each in rows if each["of"] == name]
        if len(points) < LEAST_POINTS:
            continue
        if name.startswith("streams"):
            made[name] = growth_why.streams(points)
        else:
            made[name] = (growth_why.prompts if name.startswith("prompt") else growth_why.answers)(points, shape)
    return made


def report(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """The JSON file, and a chart for each kind of growth beside it."""
    what = "tokens/s, CPU and memory of the server's processes as streams, prompts and answers grow"
    why = reasons(rows, shape_of(options.engine))
    write_results(options.output, what, "python scripts/bench/growth.py", options, why=why, rows=rows)
    for name, said in why.items():
        print(f"{name}: {said}")
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
        options.output.with_name(f"{options.output.stem}_{file}.svg").write_text(chart, encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
