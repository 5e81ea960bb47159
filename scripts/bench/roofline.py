#!/usr/bin/env python3
"""Measures which part of the memory bandwidth decoding reaches at batch 1: every token reads every weight once.

The machine's bandwidth is measured in the same run, before and after every point, by two threads that read through
arrays far larger than any cache. Through Triton and gRPC, with the int8 and the 16-bit engine in turns, after short and
long prompts. Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np

from bench.measured import spread, watched
from bench.peer_inflight import InflightPeer, built_engine
from bench.peers import questions
from bench.results import write_results
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import MODELS, REPOSITORY
from inflight_tools.common.report import run_main
from inflight_tools.load.lengths import parse_lengths
from inflight_tools.load.perf_analyzer import Load

_ARRAY_BYTES = 512 << 20
_READS = 3
_KV_BITS = 8


def read_bandwidth(threads: int) -> float:
    """Bytes per second that all cores read together, the best of a few passes over memory."""
    share = _ARRAY_BYTES // threads // 4
    arrays = [np.ones(share, dtype=np.float32) for _ in range(threads)]
    best: float = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_READS):
            began = time.perf_counter()
            list(pool.map(lambda array: float(np.dot(array, array)), arrays))  # reads it once for both arguments
            seconds = time.perf_counter() - began
            best = max(best, 4.0 * share * threads / seconds)
    return best


def bytes_per_token(engine: Path, context: float) -> float:
    """What one step reads at batch 1: all weights (a tied embedding is the output layer), keys and values so far."""
    config = json.loads((engine / "config.json").read_text(encoding="utf-8"))
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    kv = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * width * _KV_BITS / 8
    return float((engine / "openvino_model.bin").stat().st_size + context * kv)


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
    options = parser.parse_args(arguments)
    lengths: list[int] = options.prompt_tokens
    threads = os.cpu_count() or 1
    points: dict[tuple[str, int], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        peers = []
        for recipe in ("int8", "none"):
            peer = InflightPeer(f"roofline {recipe}", recipe, built_engine(options.checkpoint, recipe))
            peer.start()
            stack.callback(peer.stop)
            peer.pause()
            peers.append(peer)
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
                read = bytes_per_token(peer.engine, length + options.max_tokens / 2)
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
