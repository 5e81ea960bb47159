#!/usr/bin/env python3
"""What serving adds at low load: one request at a time to the simulated engine, whose own time is known.

Added to the first token: TTFT less the engine's one step. Added to a token: from the moment the backend has it from
the engine process to the moment perf_analyzer has the response, for each answer's last token. Prompts are text and
answers are streamed; the client runs on the same cores. Writes a JSON file. Exit status: 0 done, 1 an error, 130
stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.results import write_results
from bench.simulated_model import serving
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import Progress, run_main
from inflight_tools.load.perf_analyzer import Load, find_perf_analyzer, measure
from inflight_tools.load.prompts import prompts
from inflight_tools.load.stats import Percentiles
from inflight_tools.server.server import Server

RESULTS = REPOSITORY / "docs" / "benchmarks" / "latency.json"
STEP_MS = 10.0
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One run; milliseconds."""

    repeat: int
    requests: int
    added_to_first_token: Percentiles
    added_to_last_token: Percentiles


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Our options."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option(
        "--requests",
        type=types.at_least(2, "the first one only warms up"),
        default=60,
        metavar="N",
        help="of a run (default: %(default)s)",
    )
    option("--prompt-words", type=types.count, default=32, metavar="N", help="default: %(default)s")
    option("--max-tokens", type=types.count, default=16, metavar="N", help="of an answer (default: %(default)s)")
    option("--repeats", type=types.count, default=5, metavar="N", help="default: %(default)s")
    option(
        "--engine",
        type=types.engine,
        default=str(ENGINE),
        metavar="DIR",
        help="with tokenizer.json (default: the served one)",
    )
    option(
        "--output", type=types.output_file, default=RESULTS, help="JSON file (default: docs/benchmarks/latency.json)"
    )
    return parser.parse_args(arguments)


def serving_steps(engine: Path) -> contextlib.AbstractContextManager[Server]:
    """A ready server whose engine takes `STEP_MS` for a step and nothing else."""
    return serving(engine, {"step_ms": STEP_MS, "prefill_us_per_token": 0, "decode_us_per_sequence": 0})


def turn(repeat: int, url: str, options: argparse.Namespace, progress: Progress) -> Turn:
    """One run."""
    texts = prompts(f"latency {repeat}", options.prompt_words)
    inputs = [
        {
            "text_input": [text],
            "max_tokens": [options.max_tokens],
            "stream": [True],
            "ignore_eos": [True],
            "return_num_output_tokens": [True],
            "return_perf_metrics": [True],
        }
        for text, _ in zip(texts, range(options.requests), strict=False)
    ]
    requests = measure(
        find_perf_analyzer(),
        url,
        "llm",
        Load(concurrency=1),
        inputs,
        TIMEOUT_S,
        lambda seconds: progress.show(f"repeat {repeat}: {seconds:.0f} s"),
        keep=("last_token_time_ns",),
    )[1:]
    to_monotonic = time.monotonic_ns() - time.time_ns()
    first = [request.ttft - STEP_MS * 1e6 for request in requests if request.ttft is not None]
    last = [
        request.arrivals[-1][0] + to_monotonic - int(request.outputs["last_token_time_ns"][-1]) for request in requests
    ]
    return Turn(repeat, len(requests), Percentiles.of(first), Percentiles.of(last))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parse(arguments)
    progress = Progress()
    turns = []
    try:
        with serving_steps(options.engine) as server:
            for repeat in range(options.repeats):
                turns.append(turn(repeat, server.grpc_url, options, progress))
    finally:
        progress.clear()
    medians = {
        "added_to_first_token_ms": statistics.median(each.added_to_first_token.p50 for each in turns),
        "added_to_last_token_ms": statistics.median(each.added_to_last_token.p50 for each in turns),
    }
    for each in turns:
        print(
            f"added to the first token p50 {each.added_to_first_token.p50:.2f} p99 {each.added_to_first_token.p99:.2f} "
            f"ms, to the last p50 {each.added_to_last_token.p50:.2f} p99 {each.added_to_last_token.p99:.2f} ms"
        )
    print(json.dumps(medians))
    write_results(
        options.output,
        "what serving adds to the first token and to a token at low load",
        "python scripts/bench/latency.py",
        options,
        medians=medians,
        turns=[asdict(each) for each in turns],
    )
    return 0


if __name__ == "__main__":
    run_main(main)
