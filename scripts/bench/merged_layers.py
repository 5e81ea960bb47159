#!/usr/bin/env python3
"""Times two OpenVINO engines of the same checkpoint step by step, in turns in one process, without a server.

Written for engines whose projections are merged into fewer matrices, or not (build_engine/openvino/merge.py).
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

sys.path.append(str(Path(__file__).resolve().parent.parent))
import numpy as np

from _layout import REPOSITORY
from _report import run_main
from bench.measured import spread
from bench.results import write_results

_PROMPT, _STEPS, _PREFILL = 32, 40, 1000
_BATCHES = (1, 16, 64)


class Engine:
    """One engine directory in a pipeline with paged attention, as the backend loads it."""

    def __init__(self, directory: Path, kv_cache: str) -> None:
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = 1024
        scheduler.max_num_batched_tokens = 4096
        scheduler.max_num_seqs = max(_BATCHES)
        scheduler.enable_prefix_caching = False
        properties = {"KV_CACHE_PRECISION": kv_cache, "KEY_CACHE_QUANT_MODE": "BY_TOKEN"}
        self.pipeline = genai.ContinuousBatchingPipeline(str(directory), scheduler, "CPU", properties)
        self.number = 0

    def run(self, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[list[float], list[list[int]]]:
        """Milliseconds of every step, and what was generated greedily for each prompt."""
        import openvino as ov
        import openvino_genai as genai

        options = genai.GenerationConfig()
        options.max_new_tokens, options.ignore_eos = tokens, True
        handles = []
        for prompt in prompts:
            self.number += 1
            ids = ov.Tensor(np.array([prompt], dtype=np.int64))
            handles.append(self.pipeline.add_request(self.number, ids, options))
        times = []
        made: list[list[int]] = [[] for _ in prompts]
        while self.pipeline.has_non_finished_requests():
            began = time.perf_counter()
            self.pipeline.step()
            times.append(1000 * (time.perf_counter() - began))
            for answer, handle in zip(made, handles, strict=True):
                while handle.can_read():
                    answer += [token for each in handle.read().values() for token in each.generated_ids]
        return times, made


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option("apart", type=Path, help="an engine whose layers were left as they are")
    option("merged", type=Path, help="the same engine with merged layers")
    option("--kv-cache", default="u8", help="OpenVINO's name of its precision (default: %(default)s)")
    option("--repeats", type=int, default=5, metavar="N", help="default: %(default)s")
    option("--output", type=Path, default=REPOSITORY / "docs" / "benchmarks" / "merged_layers.json")
    options = parser.parse_args(arguments)
    engines = {name: Engine(getattr(options, name), options.kv_cache) for name in ("apart", "merged")}
    random = np.random.default_rng(0)
    points: dict[str, dict[str, list[float]]] = {}
    same: list[float] = []
    for repeat in range(-1, options.repeats):  # the first turn only warms up
        for batch in (*_BATCHES, 0):
            count, length = (batch, _PROMPT) if batch else (1, _PREFILL)
            prompts = random.integers(1000, 20_000, (count, length)).tolist()
            answers = {}
            for name in sorted(engines, reverse=bool(repeat % 2)):
                times, answers[name] = engines[name].run(prompts, _STEPS if batch else 1)
                if repeat >= 0:
                    point = f"step, batch {batch}, ms" if batch else f"prefill of {_PREFILL} tokens, ms"
                    value = statistics.median(times[2:-1]) if batch else max(times)
                    points.setdefault(point, {}).setdefault(name, []).append(value)
            if repeat >= 0 and batch:
                same += [float(a == b) for a, b in zip(answers["apart"], answers["merged"], strict=True)]
    result: dict[str, Any] = {}
    for point, values in points.items():
        ratios = [merged / apart for apart, merged in zip(values["apart"], values["merged"], strict=True)]
        row = {**{name: spread(each, 3) for name, each in values.items()}, "merged_over_apart": spread(ratios, 3)}
        result[point] = row
        print(
            f"{point}: {row['apart']['median']} apart, {row['merged']['median']} merged, "
            f"ratio {row['merged_over_apart']['median']}"
        )
    equal = round(statistics.mean(same), 3)
    print(f"greedy answers of {_STEPS} tokens to random prompts that are equal: {equal:.1%} of {len(same)}")
    write_results(
        options.output,
        "steps of two engines in turns, one process, no server",
        "python scripts/bench/merged_layers.py",
        options,
        points=result,
        equal_greedy_answers=equal,
        answers=len(same),
    )
    return 0


if __name__ == "__main__":
    run_main(main)
