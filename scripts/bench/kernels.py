#!/usr/bin/env python3
"""Shows where a step of an OpenVINO engine goes, kernel by kernel: the plugin's own counters, with paged attention.

The graph is rewritten as the serving pipeline does it and fed by hand: a token each for sequences of the same length.
Sampling and scheduling are therefore not in it (scripts/bench/steps.py times whole steps).
Exit status: 0 done, 1 an error, 2 options that mean nothing.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np

from bench.results import write_results
from bench.steps import KV_CACHES, named
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import REPOSITORY
from inflight_tools.common.report import run_main

_BLOCK = 32  # tokens
_WARM_UP = 2


class Step:
    """A compiled engine whose kernels are counted."""

    def __init__(self, folder: Path, kv_cache: str, one_core: bool) -> None:
        import openvino as ov
        from openvino._offline_transformations import paged_attention_transformation

        core = ov.Core()
        model = core.read_model(folder / "openvino_model.xml")
        paged_attention_transformation(model)
        served: dict[str, Any] = {"KV_CACHE_PRECISION": kv_cache, "KEY_CACHE_QUANT_MODE": "BY_TOKEN"}
        if one_core:
            served["INFERENCE_NUM_THREADS"] = 1
        self.compile: Callable[[], Any] = lambda: core.compile_model(model, "CPU", {**served, "PERF_COUNT": True})

    def run(self, count: int, context: int, repeats: int) -> tuple[list[float], dict[str, tuple[int, float]]]:
        """Milliseconds of each step of `count` sequences after `context` tokens, and each kernel's count and mean.

        The plugin's counters are means over all that a compiled model has done: it is compiled for each point, and what
        the steps before the first measured one took is taken off.
        """
        import openvino as ov

        compiled = self.compile()
        request = compiled.create_infer_request()
        blocks = context // _BLOCK + 1
        values = {
            "input_ids": np.random.default_rng(0).integers(1000, 20_000, count),
            "position_ids": np.full(count, context, np.int64),
            "past_lens": np.full(count, context, np.int32),
            "subsequence_begins": np.arange(count + 1, dtype=np.int32),
            "block_indices": np.arange(count * blocks, dtype=np.int32),
            "block_indices_begins": np.arange(0, (count + 1) * blocks, blocks, dtype=np.int32),
            "max_context_len": np.array(context + 1, np.int32),
        }
        for port in compiled.inputs:
            name = port.get_any_name()
            if name in values:
                request.set_tensor(name, ov.Tensor(values[name]))
            else:  # keys or values of a layer
                rest = [size.get_length() for size in list(port.get_partial_shape())[1:]]
                request.set_tensor(name, ov.Tensor(port.get_element_type(), ov.Shape([count * blocks, *rest])))
        for _ in range(_WARM_UP):
            request.infer()
        before = by_kernel(request.get_profiling_info())
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            request.infer()
            times.append(1000 * (time.perf_counter() - began))
        return times, since(before, by_kernel(request.get_profiling_info()), _WARM_UP, repeats)


def kernel(node_type: str, exec_type: str, name: str) -> str:
    """What a kernel is called in the table; products carry the layer's name, `output layer` for the last."""
    if "FullyConnected" in node_type:
        layer = name.split("/", 1)[0].rpartition(".")[2]
        what = "output layer" if "lm_head" in name or not layer.endswith("_proj") else layer
        return f"{what} ({exec_type})"
    return f"{node_type} ({exec_type})"


def by_kernel(counters: Iterable[Any]) -> dict[str, tuple[int, float]]:
    """How often each kernel ran in a step, and its milliseconds."""
    count: Counter[str] = Counter()
    ms: Counter[str] = Counter()
    for each in counters:
        if not str(each.status).endswith("EXECUTED"):
            continue
        name = kernel(each.node_type, each.exec_type, each.node_name)
        count[name] += 1
        ms[name] += each.real_time.total_seconds() * 1000
    return {name: (count[name], value) for name, value in ms.most_common()}


def since(
    before: dict[str, tuple[int, float]], after: dict[str, tuple[int, float]], earlier: int, steps: int
) -> dict[str, tuple[int, float]]:
    """Means over the last `steps`, out of means over all steps when there were `earlier` ones, and now."""
    return {
        name: (count, (mean * (earlier + steps) - before.get(name, (0, 0.0))[1] * earlier) / steps)
        for name, (count, mean) in after.items()
    }


def summary(times: Sequence[float], kernels: dict[str, tuple[int, float]]) -> dict[str, Any]:
    """The step, what lies between its kernels, and the kernels, largest first; all are means of the same steps."""
    whole = statistics.mean(times)
    rows = [
        {"kernel": name, "count": count, "ms": round(ms, 3), "share": round(ms / whole, 4)}
        for name, (count, ms) in sorted(kernels.items(), key=lambda item: -item[1][1])
    ]
    between = whole - sum(ms for _, ms in kernels.values())
    return {
        "step_ms": round(whole, 3),
        "all_ms": [round(each, 3) for each in times],
        "between_ms": round(between, 3),
        "kernels": rows,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option("engines", nargs="+", type=named, metavar="NAME=DIR", help="engine directories")
    option("--in-flight", type=types.counts, default="1,16,64", metavar="N,N", help="default: %(default)s")
    option("--context", type=types.count, default=48, metavar="N", help="tokens of each so far (default: %(default)s)")
    option("--kv-cache", choices=KV_CACHES, default="u8", help="its precision (default: %(default)s)")
    option("--one-core", action="store_true", help="a single thread")
    option("--repeats", type=types.count, default=9, metavar="N", help="steps (default: %(default)s)")
    option("--output", type=types.output_file, default=REPOSITORY / "docs" / "benchmarks" / "kernels.json")
    options = parser.parse_args(arguments)
    if len({name for name, _ in options.engines}) < len(options.engines):
        parser.error("two engines have the same name, and could not be told apart")
    found: dict[str, dict[str, Any]] = {}
    for name, folder in options.engines:
        step = Step(folder, options.kv_cache, options.one_core)
        for count in options.in_flight:
            point = summary(*step.run(count, options.context, options.repeats))
            found.setdefault(name, {})[str(count)] = point
            print(f"{name}, {count} in flight: {point['step_ms']:.1f} ms, between kernels {point['between_ms']:.1f}")
            for row in point["kernels"][:6]:
                print(f"  {row['share']:6.1%} {row['ms']:8.2f} ms, {row['count']:3} × {row['kernel']}")
    options.engines = list(found)  # their folders are of this machine only
    what = "milliseconds of every kind of kernel in a step, by the plugin's counters"
    write_results(options.output, what, "python scripts/bench/kernels.py", options, engines=found)
    return 0


if __name__ == "__main__":
    run_main(main)
