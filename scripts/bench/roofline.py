#!/usr/bin/env python3
"""Measures which part of the memory bandwidth decoding reaches at batch 1: every token reads every weight once.

The machine's bandwidth is measured in the same run, before and after every point, by two threads that read through
arrays far larger than any cache. Through Triton and gRPC, with the int8 and the 16-bit engine in turns, after short and
long prompts. With --engine: bare engines instead, with many in flight and in prefill too, over what the cores can
compute as well (scripts/bench/bare_roofline.py). Exit status: 0 done, 1 an error, 2 options that mean nothing.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench import bare_roofline
from bench.engine_work import EngineWork, engine_work
from bench.limits import cores, read_bandwidth
from bench.measured import spread, watched
from bench.peer_inflight import InflightPeer, built_engine
from bench.peers import questions
from bench.results import write_results
from bench.steps import KV_CACHES, MOST_IN_A_STEP, MOST_IN_FLIGHT, named
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import MODELS, REPOSITORY
from inflight_tools.common.report import run_main
from inflight_tools.load.lengths import parse_lengths
from inflight_tools.load.perf_analyzer import Load


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option(
        "--checkpoint",
        type=types.checkpoint,
        default=str(MODELS / "SmolLM2-135M-Instruct"),
        help="a Hugging Face checkpoint",
    )
    option("--prompt-tokens", type=types.counts, default="32,1000,4000", metavar="N,N", help="default: %(default)s")
    option(
        "--max-tokens",
        type=types.at_least(2, "a rate is of what comes after the first token"),
        default=64,
        metavar="N",
        help="of each answer (default: %(default)s)",
    )
    option("--requests", type=types.count, default=2, metavar="N", help="per repeat and point (default: %(default)s)")
    option("--repeats", type=types.count, default=3, metavar="N", help="default: %(default)s")
    option("--output", type=types.output_file, default=REPOSITORY / "docs" / "benchmarks" / "roofline.json")
    bare = parser.add_argument_group("bare engines, in this process")
    bare.add_argument(
        "--engine", action="append", type=named, metavar="NAME=DIR", help="an engine of OpenVINO; several"
    )
    bare.add_argument("--in-flight", type=types.counts, default="1,16,64", metavar="N,N", help="default: %(default)s")
    bare.add_argument("--prefill", type=types.count, default=512, metavar="N", help="tokens (default: %(default)s)")
    bare.add_argument("--kv-cache", choices=KV_CACHES, default="u8", help="its precision (default: %(default)s)")
    bare.add_argument("--one-core", action="store_true", help="processor time of one thread, on a machine in use")
    options = parser.parse_args(arguments)
    if options.one_core and not options.engine:
        parser.error("--one-core is for bare engines: name one with --engine")
    if options.engine:
        return of_bare_engines(parser, options)
    return at_batch_1(options)


def of_bare_engines(parser: Parser, options: Any) -> int:
    """The second mode."""
    engines = dict(options.engine)
    if len(engines) < len(options.engine):
        parser.error("two engines have the same name, and could not be told apart")
    if max(options.in_flight) > MOST_IN_FLIGHT:
        parser.error(f"--in-flight: an engine is loaded for at most {MOST_IN_FLIGHT} sequences here")
    if options.prefill > MOST_IN_A_STEP:
        parser.error(f"--prefill: a step takes at most {MOST_IN_A_STEP:,} tokens here, and a prompt is one step")
    options.engine = list(engines)  # their folders are of this machine only
    found = bare_roofline.measure(
        engines,
        options.in_flight,
        options.prefill,
        options.repeats,
        options.kv_cache,
        one_core=options.one_core,
    )
    for row in found["rows"]:
        told = (f"{figure[9:]} {row[figure]['median']:.0%}" for figure in row if figure.startswith("share of "))
        print(f"{row['engine']}, {row['what']}: {row['ms']['median']:.1f} ms; {', '.join(told)}")
    what = "steps of bare engines against what the machine reads, copies and computes, measured in every turn"
    write_results(options.output, what, "python scripts/bench/roofline.py --engine NAME=DIR", options, **found)
    return 0


def at_batch_1(options: Any) -> int:
    """The first mode."""
    lengths: list[int] = options.prompt_tokens
    threads = cores()
    work: dict[Path, EngineWork] = {}
    points: dict[tuple[str, int], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        peers = []
        for recipe in ("int8", "none"):
            peer = InflightPeer(f"roofline {recipe}", recipe, built_engine(options.checkpoint, recipe))
            peer.start()
            stack.callback(peer.stop)
            peer.pause()
            peers.append(peer)
            work[peer.engine] = engine_work(peer.engine)
        for repeat, length in itertools.product(range(options.repeats), lengths):
            asked = questions(peers[0].engine, parse_lengths(str(length), 0), options.max_tokens, repeat)
            for peer in peers if repeat % 2 else peers[::-1]:
                before = read_bandwidth(threads)
                peer.resume()
                with watched(peer.cpu_s) as others:
                    requests = peer.drive(
                        list(itertools.islice(asked, options.requests)), Load(concurrency=1), f"{repeat}"
                    )
                peer.pause()
                spans = [request.arrivals[-1][0] - request.arrivals[0][0] for request in requests]
                made = [request.tokens - request.arrivals[0][1] for request in requests]
                speed = sum(made) / sum(spans) * 1e9
                bandwidth = (before + read_bandwidth(threads)) / 2
                read = work[peer.engine].step_bytes(1, length + options.max_tokens / 2)
                point = {"tokens_per_s": speed, "bandwidth_gb_s": bandwidth / 1e9, "share": speed * read / bandwidth}
                points.setdefault((peer.weights, length), []).append({**point, "others": others.share})
    rows: list[dict[str, Any]] = []
    for (weights, length), several in points.items():
        figures = {name: spread([each[name] for each in several], 3) for name in several[0]}
        rows.append({"weights": weights, "prompt_tokens": length, **figures})
        print(
            f"{weights:5} {length:5} tokens: {figures['tokens_per_s']['median']:.1f} tokens/s, "
            f"{figures['share']['median']:.1%} of {figures['bandwidth_gb_s']['median']:.1f} GB/s"
        )
    ratio = [
        ours["tokens_per_s"] / theirs["tokens_per_s"]
        for ours, theirs in zip(points["int8", lengths[0]], points["none", lengths[0]], strict=True)
    ]
    print(f"int8 over 16-bit, decoding: {statistics.median(ratio):.2f}")
    what = "tokens/s of decoding at batch 1 against the memory bandwidth, measured before and after every point"
    command = "python scripts/bench/roofline.py"
    write_results(options.output, what, command, options, rows=rows, int8_over_16_bit=spread(ratio, 3))
    return 0


if __name__ == "__main__":
    run_main(main)
