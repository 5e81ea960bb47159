#!/usr/bin/env python3
"""Compares how many tokens one step of an OpenVINO engine may take: in turns in one process, without a server.

For the default of `engine_options`' max_batched_tokens (python_backend/inflight/engines/openvino/chunk.py): how fast
one long prompt is computed, and what a closed loop of requests gets. Ratios are over the last of the sizes.
Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np

from bench.measured import spread
from bench.results import write_results
from bench.steps import KV_CACHES, KV_TOKENS, MOST_IN_FLIGHT, Engine
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import Progress, run_main

Figures = dict[str, float]


def prefill(engine: Engine, prompt: Sequence[int]) -> Figures:
    """One prompt alone."""
    began = time.perf_counter()
    times, _ = engine.run([prompt], 1)
    seconds = time.perf_counter() - began
    return {"prompt tokens/s": len(prompt) / seconds, "longest step, ms": max(times)}


def closed_loop(engine: Engine, work: Sequence[tuple[list[int], int]], in_flight: int) -> Figures:
    """Requests (prompt, tokens of the answer), so many at a time."""
    waiting = list(reversed(work))
    running: list[tuple[Any, float, list[float]]] = []  # handle, sent, when its tokens came
    done: list[tuple[float, list[float]]] = []
    began = time.perf_counter()
    while waiting or running:
        while waiting and len(running) < in_flight:
            prompt, tokens = waiting.pop()
            running.append((engine.send(prompt, tokens), time.perf_counter(), []))
        engine.pipeline.step()
        now = time.perf_counter()
        for handle, _, came in running:
            while handle.can_read():
                came += [now] * sum(len(each.generated_ids) for each in handle.read().values())
        ended = [each for each in running if each[0].get_status().name != "RUNNING"]
        done += [(sent, came) for _, sent, came in ended]
        running = [each for each in running if each not in ended]
    seconds = time.perf_counter() - began
    gaps = [after - before for _, came in done for before, after in itertools.pairwise(came)]
    return {
        "tokens/s": sum(len(came) for _, came in done) / seconds,
        "first token p50, ms": 1000 * statistics.median(came[0] - sent for sent, came in done),
        "between tokens p50, ms": 1000 * statistics.median(gaps),
        "between tokens p99, ms": 1000 * float(np.quantile(gaps, 0.99)),
    }


def summary(values: dict[int, list[Figures]]) -> dict[str, Any]:
    """By figure and size: median and spread, and those of the ratio to the last size in the same turn."""
    *_, base = values.values()
    return {
        what: {
            str(size): {
                "value": spread([turn[what] for turn in turns], 1),
                "ratio": spread([turn[what] / its[what] for turn, its in zip(turns, base, strict=True)], 3),
            }
            for size, turns in values.items()
        }
        for what in base[0]
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option("--engine", type=types.openvino_engine, default=str(ENGINE), metavar="DIR", help="default: the quickstart's")
    option("--sizes", type=types.counts, default=[128, 256, 512], metavar="N,N", help="default: 128,256,512")
    option("--kv-cache", choices=KV_CACHES, default="u8", help="OpenVINO's name of its precision (default: u8)")
    option("--prefill", type=types.count, default=1000, metavar="N", help="tokens of the long prompt (default: 1000)")
    option("--in-flight", type=types.counts, default=[16], metavar="N,N", help="of the closed loops (default: 16)")
    option("--tokens", type=types.count, default=128, metavar="N", help="of prompts and of answers, on average")
    option("--waves", type=types.count, default=2, metavar="N", help="requests of a loop: N × in flight (default: 2)")
    option("--repeats", type=types.count, default=3, metavar="N", help="default: %(default)s")
    option("--output", type=types.output_file, default=REPOSITORY / "docs" / "benchmarks" / "chunks.json")
    options = parser.parse_args(arguments)
    most = max(options.prefill, 3 * options.tokens * min(max(options.in_flight), MOST_IN_FLIGHT))
    if most > KV_TOKENS:
        parser.error(f"up to {most} tokens at once do not fit into the {KV_TOKENS} of the KV pool")
    points = measure(options)
    for point, found in points.items():
        for what, sizes in found.items():
            told = (f"{size}: {each['value']['median']} ({each['ratio']['median']})" for size, each in sizes.items())
            print(f"{point}, {what}: {', '.join(told)}")
    what = "how many tokens one step may take, in turns, one process, no server"
    write_results(options.output, what, "python scripts/bench/chunks.py", options, points=points)
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every size in every turn, in an order of its own; the first turn of the long prompt only warms up."""
    engines = {size: Engine(options.engine, options.kv_cache, step_tokens=size) for size in options.sizes}
    random = np.random.default_rng(0)

    def prompt(tokens: int) -> list[int]:
        return random.integers(1000, 20_000, tokens).tolist()  # type: ignore[no-any-return]

    points: dict[str, dict[int, list[Figures]]] = {}
    progress = Progress()
    for repeat in range(-1, options.repeats):
        point = points.setdefault(f"a prompt of {options.prefill} tokens", {size: [] for size in engines})
        for size in random.permutation(list(engines)).tolist():
            found = prefill(engines[size], prompt(options.prefill))
            if repeat >= 0:
                point[size].append(found)
        for in_flight in options.in_flight if repeat >= 0 else ():
            point = points.setdefault(f"{in_flight} in flight", {size: [] for size in engines})
            least, most = max(2, options.tokens // 2), max(2, options.tokens * 3 // 2)  # two: a time between them
            lengths = random.integers(least, most + 1, (options.waves * in_flight, 2))
            for size in random.permutation(list(engines)).tolist():
                progress.show(f"turn {repeat + 1} of {options.repeats}, {in_flight} in flight, {size} tokens a step")
                work = [(prompt(tokens), answer) for tokens, answer in lengths.tolist()]
                point[size].append(closed_loop(engines[size], work, in_flight))
    progress.clear()
    return {point: summary(values) for point, values in points.items()}


if __name__ == "__main__":
    run_main(main)
