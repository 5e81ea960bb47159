"""The ratios that `guard.py` looks at, each measured by the benchmark that it comes from, shorter than there."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import chat_cost, delivery, gateway, latency, overhead
from bench.guard_bounds import Better, Measured
from bench.measured import watched_tree
from bench.turns import Rules, Turns, compare
from inflight_tools.common.report import Failure, Progress

_LOOPS = 7
_DELIVERIES = 2  # each repeat starts three servers
Values = Mapping[str, list[float]]  # by the ratio's name: a value of each repeat

SERVED = "tokens/s through Triton over the bare engine, 8 in flight"
FIRST = "what serving adds to a first token, 1 in flight, in units of the fixed loop"
MERGED = "tokens/s merged over one response per token, 256 streams"
STREAMS = "tokens/s of 1,024 streams over 256"
GATEWAY = "tokens/s through the gateway over plain gRPC, 8 at once"
CHAT = "preparing a chat request, in units of the fixed loop"


@dataclass(frozen=True, slots=True)
class Source:
    """One benchmark: the ratios it gives, and how it measures them: (engine directory, repeats, progress)."""

    name: str
    ratios: Mapping[str, Better]
    measure: Callable[[Path, int, Progress], Values]


def fixed_loop_us() -> float:
    """Microseconds of processor time of work that never changes, with no code of ours in it: this machine's unit."""
    found = []
    words = [f"word{number % 97}" for number in range(500)]
    for _ in range(_LOOPS):
        began = time.process_time()
        for _ in range(20):
            sorted(json.loads(json.dumps(words)))
        found.append((time.process_time() - began) / 20 * 1e6)
    return statistics.median(found)


def served(engine: Path, repeats: int, progress: Progress) -> Values:
    """As overhead.py."""
    options = overhead.parse(["--engine", str(engine), "--seed", str(time.time_ns() % 10**9)])
    rules = Rules(repeats=repeats, waves=4, max_tokens=48, quiet=1.0, retries=0, patience_s=0.0)
    with overhead.Sides(options) as sides:
        records = Turns([sides.bare, sides.served], sides.supply, rules, progress.show).take([8])
    (row,) = compare(records, sides.served.name, sides.bare.name)
    return {SERVED: row.ratios}


def first_token(engine: Path, repeats: int, progress: Progress) -> Values:
    """As latency.py, over the fixed loop."""
    options = latency.parse(["--engine", str(engine), "--requests", "31", "--max-tokens", "4"])
    found = []
    with latency.serving_steps(engine) as server:
        for repeat in range(repeats):
            before = fixed_loop_us()
            added = latency.turn(repeat, server.grpc_url, options, progress).added_to_first_token.p50
            found.append(1000 * added / statistics.mean((before, fixed_loop_us())))
    return {FIRST: found}


def delivered(engine: Path, repeats: int, progress: Progress) -> Values:
    """As delivery.py; every text is compared there. Raises `Failure` for one that differs."""
    options = delivery.parse(["--engine", str(engine), "--waves", "2", "--tokens", "1000"])
    found: dict[str, list[float]] = {MERGED: [], STREAMS: []}
    for repeat in range(min(repeats, _DELIVERIES)):
        merged, many, alone = (
            delivery.take(repeat, arm, streams, options, progress)
            for arm, streams in ((delivery.ARMS[0], 256), (delivery.ARMS[0], 1024), (delivery.ARMS[1], 256))
        )
        different = sum(turn.different_texts for turn in (merged, many, alone))
        if different:
            raise Failure(f"{different} texts are not those of the engine's tokens.")
        found[MERGED].append(merged.tokens_per_s / alone.tokens_per_s)
        found[STREAMS].append(many.tokens_per_s / merged.tokens_per_s)
    return found


def through_gateway(engine: Path, repeats: int, progress: Progress) -> Values:
    """As gateway.py."""
    options = gateway.parse(["--engine", str(engine), "--requests", "2", "--tokens", "48", "--repeats", str(repeats)])
    progress.show("gateway")
    with gateway.both(engine) as (targets, pid):
        gateway.turn("http", targets["http"], "warm", 4, options)
        return {GATEWAY: gateway.measured(targets, 8, pid, options)["gateway over gRPC"]}


def prepared(engine: Path, repeats: int, progress: Progress) -> Values:
    """As chat_cost.py, over the fixed loop."""
    found = []
    for repeat in range(repeats):
        progress.show(f"preparation, repeat {repeat + 1}")
        before = fixed_loop_us()
        cost = chat_cost.preparation(engine, chat_cost.five_kilobytes(), chat_cost.conversation(*chat_cost.THOUSAND))[
            "all"
        ]
        found.append(cost / statistics.mean((before, fixed_loop_us())))
    return {CHAT: found}


SOURCES = (
    Source("served", {SERVED: Better.HIGHER}, served),
    Source("first-token", {FIRST: Better.LOWER}, first_token),
    Source("delivery", {MERGED: Better.HIGHER, STREAMS: Better.HIGHER}, delivered),
    Source("gateway", {GATEWAY: Better.HIGHER}, through_gateway),
    Source("preparation", {CHAT: Better.LOWER}, prepared),
)


def measure(source: Source, engine: Path, repeats: int, progress: Progress) -> dict[str, Measured]:
    """One source, and what others used of the machine meanwhile."""
    with watched_tree() as others:
        values = source.measure(engine, repeats, progress)
    return {name: Measured(list(values[name]), others.share) for name in source.ratios}
