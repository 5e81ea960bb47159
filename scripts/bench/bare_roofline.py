"""Which part of the machine's limits bare engines reach, in flight and in prefill: roofline.py's second mode.

All engines take turns in one process, without a server. The limits are measured in every turn: what the cores read and
copy, what they multiply and add in registers, and what one large matrix product of OpenVINO's reaches
(scripts/bench/limits.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.engine_work import EngineWork, engine_work
from bench.limits import copy_bandwidth, cores, product_rates, read_bandwidth, read_by_one_core, register_peaks
from bench.measured import spread
from bench.steps import Engine

PROMPT, STEPS = 8, 9
READ, COPIED = "bytes read", "bytes copied"


def measure(
    engines: Mapping[str, Path],
    batches: Sequence[int],
    prefill: int,
    repeats: int,
    kv_cache: str,
    *,
    one_core: bool = False,
) -> dict[str, Any]:
    """What a record holds: the limits, and a row for each engine and point with its shares of them.

    `batches` are numbers of sequences in flight, `prefill` the tokens of a prompt that is computed alone. With
    `one_core` everything is the processor time of one thread, which other programs on the machine hardly change.
    """
    work = {name: engine_work(folder) for name, folder in engines.items()}
    loaded = {name: Engine(folder, kv_cache, one_core) for name, folder in engines.items()}
    random = np.random.default_rng(0)
    instructions: dict[str, str] = {}
    turns: list[dict[str, float]] = []
    points: dict[tuple[str, str], list[dict[str, float]]] = {}
    for name in engines:  # kernels are made for shapes that they meet
        loaded[name].run(random.integers(1000, 20_000, (1, PROMPT)).tolist(), 4)
    for _ in range(repeats):
        limits, instructions = machine_limits(one_core)
        turns.append(limits)
        for batch in (*batches, 0):
            count, length = (batch, PROMPT) if batch else (1, prefill)
            prompts = random.integers(1000, 20_000, (count, length)).tolist()
            for name in random.permutation(list(engines)).tolist():
                times, _ = loaded[name].run(prompts, STEPS if batch else 1)
                what = f"{batch} in flight" if batch else f"prefill of {prefill} tokens"
                ms = statistics.median(times[2:-1]) if batch else max(times)
                points.setdefault((name, what), []).append(shares(work[name], batch, prefill, ms, limits))
    return {
        "instructions": instructions,
        "limits_per_s": {name: spread([turn[name] / 1e9 for turn in turns], 1) for name in turns[0]},
        "rows": [
            {"engine": name, "what": what, **{figure: spread([each[figure] for each in turn], 4) for figure in turn[0]}}
            for (name, what), turn in points.items()
        ],
    }


def machine_limits(one_core: bool) -> tuple[dict[str, float], dict[str, str]]:
    """Bytes and operations per second by the limit's name, and the instructions of those in registers."""
    peaks = register_peaks(1 if one_core else cores())
    limits = {READ: read_by_one_core() if one_core else read_bandwidth(cores())}
    limits.update({f"{kind} in registers": rate for kind, (_, rate) in peaks.items()})
    if not one_core:
        limits[COPIED] = copy_bandwidth(cores())
        limits.update({f"{kind} product": rate for kind, rate in product_rates().items()})
    return limits, {kind: names for kind, (names, _) in peaks.items()}


def shares(work: EngineWork, batch: int, prefill: int, ms: float, limits: Mapping[str, float]) -> dict[str, float]:
    """A step of `batch` sequences (0: a prompt of `prefill` tokens) that took `ms`, and its share of each limit."""
    context = PROMPT + STEPS / 2 if batch else 0.0
    read = work.step_bytes(max(batch, 1), context) / ms * 1e3
    operations = (work.step_operations(batch, context) if batch else work.prefill_operations(prefill)) / ms * 1e3
    found = {"ms": ms, "gb_per_s": read / 1e9, "gop_per_s": operations / 1e9}
    for name, most in limits.items():
        found[f"share of {name}"] = (read if name in (READ, COPIED) else operations) / most
    return found
