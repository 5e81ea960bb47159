#!/usr/bin/env python3
"""Times OpenVINO engines of one checkpoint step by step, in turns in one process, without a server.

For what the builder does to a graph (build_engine/openvino/merge.py) and for its recipes.
Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import argparse
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
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import REPOSITORY
from inflight_tools.common.report import run_main

KV_CACHES = ("u8", "i8", "u4", "i4", "f16", "bf16", "f32")
_PROMPT, _LEAST_STEPS = 32, 4  # of the steps the first two and the last one do not count
MOST_IN_FLIGHT = 64
MOST_IN_A_STEP = 4096
_KV_BLOCKS = 1024
KV_TOKENS = 32 * _KV_BLOCKS


class Engine:
    """One engine directory in a pipeline with paged attention, as the backend loads it."""

    def __init__(
        self, directory: Path, kv_cache: str, one_core: bool = False, step_tokens: int = MOST_IN_A_STEP
    ) -> None:
        """`one_core`: a single thread, whose processor time is told instead of the time that passes. `step_tokens`:
        the most tokens of one step.
        """
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = _KV_BLOCKS
        scheduler.max_num_batched_tokens = step_tokens
        scheduler.max_num_seqs = MOST_IN_FLIGHT
        scheduler.enable_prefix_caching = False
        properties: dict[str, Any] = {"KV_CACHE_PRECISION": kv_cache, "KEY_CACHE_QUANT_MODE": "BY_TOKEN"}
        if one_core:
            properties["INFERENCE_NUM_THREADS"] = 1
        self.clock = time.process_time if one_core else time.perf_counter
        self.pipeline = genai.ContinuousBatchingPipeline(str(directory), scheduler, "CPU", properties)
        self.number = 0

    def send(self, prompt: Sequence[int], tokens: int) -> Any:
        """OpenVINO's handle of one request: so many tokens, greedy."""
        import openvino as ov
        import openvino_genai as genai

        options = genai.GenerationConfig()
        options.max_new_tokens, options.ignore_eos = tokens, True
        self.number += 1
        return self.pipeline.add_request(self.number, ov.Tensor(np.array([prompt], dtype=np.int64)), options)

    def run(self, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[list[float], list[list[int]]]:
        """Milliseconds of every step, and what was generated greedily for each prompt."""
        handles = [self.send(prompt, tokens) for prompt in prompts]
        times = []
        made: list[list[int]] = [[] for _ in prompts]
        while self.pipeline.has_non_finished_requests():
            began = self.clock()
            self.pipeline.step()
            times.append(1000 * (self.clock() - began))
            for answer, handle in zip(made, handles, strict=True):
                while handle.can_read():
                    answer += [token for each in handle.read().values() for token in each.generated_ids]
        return times, made


def named(text: str) -> tuple[str, Path]:
    """NAME=DIR."""
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    return name, types.openvino_engine(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option("engines", nargs="+", type=named, metavar="NAME=DIR", help="engine directories; ratios are over the first")
    option(
        "--kv-cache", choices=KV_CACHES, default="u8", help="OpenVINO's name of its precision (default: %(default)s)"
    )
    option("--repeats", type=types.count, default=5, metavar="N", help="default: %(default)s")
    option(
        "--batches",
        type=types.counts,
        default=[1, 4, 16, MOST_IN_FLIGHT],
        metavar="N,N",
        help=f"requests in flight, at most {MOST_IN_FLIGHT} (default: 1,4,16,{MOST_IN_FLIGHT})",
    )
    option("--steps", type=types.at_least(_LEAST_STEPS), default=40, metavar="N", help="of each batch (default: 40)")
    option("--prefill", type=types.at_least(0), default=1000, metavar="TOKENS", help="default: 1000; 0: none")
    option("--output", type=types.output_file, default=REPOSITORY / "docs" / "benchmarks" / "steps.json")
    options = parser.parse_args(arguments)
    if len({name for name, _ in options.engines}) < len(options.engines):
        parser.error("two engines have the same name, and could not be told apart")
    if max(options.batches) > MOST_IN_FLIGHT or options.prefill > MOST_IN_A_STEP:
        parser.error(f"at most {MOST_IN_FLIGHT} requests in flight, and prompts of {MOST_IN_A_STEP} tokens")
    engines = {name: Engine(folder, options.kv_cache) for name, folder in options.engines}
    options.engines = list(engines)  # their folders are of this machine only
    random = np.random.default_rng(0)
    points: dict[str, dict[str, list[float]]] = {}
    same: dict[str, list[float]] = {}
    for repeat in range(-1, options.repeats):  # the first turn only warms up
        for batch in (*options.batches, *([0] if options.prefill else [])):
            count, length = (batch, _PROMPT) if batch else (1, options.prefill)
            prompts = random.integers(1000, 20_000, (count, length)).tolist()
            answers = {}
            for name in random.permutation(list(engines)).tolist():
                times, answers[name] = engines[name].run(prompts, options.steps if batch else 1)
                if repeat >= 0:
                    point = f"step, batch {batch}, ms" if batch else f"prefill of {options.prefill} tokens, ms"
                    value = statistics.median(times[2:-1]) if batch else max(times)
                    points.setdefault(point, {}).setdefault(name, []).append(value)
            if repeat >= 0 and batch:
                first, *others = engines
                for name in others:
                    pairs = zip(answers[first], answers[name], strict=True)
                    same.setdefault(name, []).extend(float(a == b) for a, b in pairs)
    result = {point: figures({name: values[name] for name in engines}) for point, values in points.items()}
    for point, row in result.items():
        told = (f"{name} {each['median']} ({row['ratios'][name]['median']})" for name, each in row["ms"].items())
        print(f"{point}: {', '.join(told)}")
    equal = {name: round(statistics.mean(each), 3) for name, each in same.items()}
    print(f"greedy answers of {options.steps} tokens to random prompts that equal the first's: {equal}")
    command = "python scripts/bench/steps.py"
    what = "steps of engines in turns, one process, no server"
    write_results(options.output, what, command, options, points=result, equal_greedy_answers=equal)
    return 0


def figures(values: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and spread of each engine, and of its ratio to the first in the same turn."""
    first = next(iter(values.values()))
    ratios = {name: [mine / its for mine, its in zip(each, first, strict=True)] for name, each in values.items()}
    return {
        "ms": {name: spread(each, 3) for name, each in values.items()},
        "ratios": {name: spread(each, 3) for name, each in ratios.items()},
    }


if __name__ == "__main__":
    run_main(main)
