#!/usr/bin/env python3
"""In-flight batching against dynamic and static batching: throughput at equal p95 latency, for committed workloads.

All three run in virtual time through the backend's own admission queue and the simulated engine, with the same cost of
a step. `inflight` adds requests to the running batch at any step; `dynamic` waits max_queue_delay for a batch and runs
it to its end, as Triton's dynamic batcher in front of an engine does; `static` waits for a full batch, which is padded
to its longest prompt and answer. Tokens are streamed in all three, so a short answer ends early for its client
everywhere.
--real drives the openvino engine class instead, at one rate, and says what the model predicted for the same requests.
Workloads and settings: docs/benchmarks/batching/workloads.json. Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench import calibration, step_costs
from bench.virtual import Arrival, Outcome, Policy, Replica, percentile, poisson
from build_engine import svg
from build_engine.arguments import Parser
from build_engine.planning.gpus import gpu_named
from inflight.engines.base import EngineRequest, SamplingParams
from inflight.engines.simulated.cost import SimulatedOptions
from inflight.serving.admission import AdmissionQueue
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import run_main
from inflight_tools.load.lengths import parse_lengths

FOLDER = REPOSITORY / "docs" / "benchmarks" / "batching"
SHARE = 0.95
ACCURACY = REPOSITORY / "docs" / "benchmarks" / "simulated_accuracy.json"
LONE_REQUESTS = 256
NO_LIMIT = 1 << 40


@dataclass(frozen=True, slots=True)
class Point:
    """One strategy's setting at one rate."""

    strategy: str
    setting: dict[str, float]
    rate: float
    p95: float  # of the latency, seconds
    tokens_per_s: float


def policy(strategy: str, setting: dict[str, float], places: int) -> Policy:
    """A setting of workloads.json as the queue takes it."""
    if strategy == "inflight":
        return Policy("inflight", places)
    batch = int(setting["batch"])
    if strategy == "dynamic":
        return Policy("dynamic", batch, setting["max_queue_delay_s"])
    return Policy("static", batch, math.inf, padded=True)


def sustained(outcome: Outcome, trace: Sequence[Arrival]) -> float:
    """Tokens/s of the requests that were done when the last one arrived."""
    end = trace[-1].at
    return sum(each.arrival.answer for each in outcome.served if each.last <= end) / end


def requests_of(plan: dict[str, Any], load: dict[str, str], rate: float, count: int) -> list[Arrival]:
    """The same requests at any rate."""
    prompts, answers = parse_lengths(load["prompt"], 1), parse_lengths(load["answer"], 1)
    return poisson(rate, prompts, answers, count, f"{plan['seed']} {load['name']}")


def served_alone(options: SimulatedOptions, plan: dict[str, Any], load: dict[str, str]) -> list[float]:
    """Latencies in seconds without any other request."""
    alone = requests_of(plan, load, 1e-4, LONE_REQUESTS)
    return [each.latency for each in Replica(options, Policy(batch=1)).run(alone).served]


def sweep(
    options: SimulatedOptions, how: Policy, plan: dict[str, Any], load: dict[str, str], alone: Sequence[float]
) -> list[tuple[float, float, float]]:
    """(rate, p95 latency, tokens/s) from low rates to where this setting is overloaded."""
    rate, most = 0.5 / statistics.fmean(alone), max(plan["latency_limits"]) * percentile(alone, SHARE)
    found: list[tuple[float, float, float]] = []
    while True:
        trace = requests_of(plan, load, rate, plan["requests"])
        outcome = Replica(options, how).run(trace)
        p95 = percentile([each.latency for each in outcome.served], SHARE)
        found.append((rate, p95, sustained(outcome, trace)))
        # At low rates a static batch takes long to fill, so a bad latency alone is no overload; and a short trace may
        # be over before its latency grows bad.
        best = max(tokens for _, _, tokens in found)
        if len(found) > 1 and found[-1][2] <= 1.03 * found[-2][2] and (p95 > most or found[-1][2] < 0.8 * best):
            return found
        rate *= plan["rate_step"]


def at_limit(points: Sequence[Point], limit: float) -> float:
    """The most tokens/s at a p95 latency of at most `limit`, along straight lines between points of one setting."""
    best = max((point.tokens_per_s for point in points if point.p95 <= limit), default=0.0)
    for before, after in itertools.pairwise(points):
        low, high = sorted((before, after), key=lambda point: point.p95)
        if low.p95 <= limit < high.p95:
            share = (limit - low.p95) / (high.p95 - low.p95)
            best = max(best, low.tokens_per_s + share * (high.tokens_per_s - low.tokens_per_s))
    return best


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one process of several is given to simulate: a setting under a workload, and the latencies without load."""

    options: SimulatedOptions
    strategy: str
    setting: dict[str, float]
    plan: dict[str, Any]
    load: dict[str, str]
    alone: list[float]

    def points(self) -> list[Point]:
        """From low rates to overload."""
        how = policy(self.strategy, self.setting, self.plan["max_running"])
        swept = sweep(self.options, how, self.plan, self.load, self.alone)
        return [Point(self.strategy, self.setting, *figures) for figures in swept]


def compare(
    options: SimulatedOptions, plan: dict[str, Any], load: dict[str, str], pool: Executor | None = None
) -> dict[str, Any]:
    """All strategies and settings of one workload; each strategy takes its best setting at each limit."""
    alone = served_alone(options, plan, load)
    lone = percentile(alone, SHARE)
    sweeps = [
        Sweep(options, strategy, setting, plan, load, alone)
        for strategy, settings in plan["settings"].items()
        for setting in settings
    ]
    curves: dict[str, list[list[Point]]] = {}
    for points in (pool.map if pool else map)(Sweep.points, sweeps):
        curves.setdefault(points[0].strategy, []).append(points)
    rows = []
    for factor in plan["latency_limits"]:
        best = {name: max(at_limit(points, factor * lone) for points in found) for name, found in curves.items()}
        rows.append({"limit": factor, "p95_s": factor * lone, "tokens_per_s": best} | {
            f"inflight_over_{name}": best["inflight"] / best[name] if best[name] else None
            for name in ("dynamic", "static")
        })  # fmt: skip
    every = [point for found in curves.values() for points in found for point in points]
    return {
        "workload": load,
        "lone_p95_s": lone,
        "at_limits": rows,
        "points": [
            {"strategy": each.strategy, "setting": each.setting, "rate": round(each.rate, 4),
             "p95_s": round(each.p95, 4), "tokens_per_s": round(each.tokens_per_s, 1)} for each in every
        ],
    }  # fmt: skip


def plot(system: str, found: dict[str, Any], most: float) -> str:
    """p95 latency against throughput, each strategy with its best setting: the lower right is best."""
    lone = found["lone_p95_s"]
    series = []
    for strategy in ("inflight", "dynamic", "static"):
        points = sorted(
            (each["tokens_per_s"], each["p95_s"] / lone) for each in found["points"] if each["strategy"] == strategy
        )
        hull: list[tuple[float, float]] = []
        for point in reversed(points):  # what no other setting beats in both
            if point[1] <= 2 * most and (not hull or point[1] < hull[-1][1]):
                hull.append(point)
        if hull:
            series.append(svg.Series(strategy, hull[::-1]))
    title = f"{system}, {found['workload']['name']}: p95 latency against throughput"
    return svg.chart(title, svg.Axis("generated tokens/s"), svg.Axis("p95 latency ÷ p95 alone", True), series)


class RealRun:
    """The openvino engine class behind an admission queue, in real time."""

    def __init__(self, bench: calibration.Bench, how: Policy) -> None:
        """Ready for one trace."""
        self._bench = bench
        self._how = how
        limits = (how.batch, NO_LIMIT, 0, how.strategy, how.max_wait_s)
        self._queue = AdmissionQueue(bench.engine.info, *limits)

    def run(self, trace: Sequence[Arrival]) -> dict[str, float]:
        """p95 latency in seconds and tokens/s from the first arrival to the last token somebody wanted."""
        began = time.perf_counter() - trace[0].at
        queue, engine = self._queue, self._bench.engine
        coming = 0
        left: dict[int, int] = {}
        ends: dict[int, float] = {}
        place_of: dict[int, int] = {}
        while coming < len(trace) or queue.waiting or queue.running:
            now = time.perf_counter() - began
            while coming < len(trace) and trace[coming].at <= now:
                sampling = SamplingParams(max_tokens=trace[coming].answer)
                token_ids = [0] * trace[coming].prompt
                queue.offer(EngineRequest(request_id=coming, token_ids=token_ids, sampling=sampling), trace[coming].at)
                coming += 1
            started = queue.take(now)
            for place in started:
                batch = [trace[each] for each in (started if self._how.padded else [place])]
                own_id = self._bench.add(max(each.prompt for each in batch), max(each.answer for each in batch))
                place_of[own_id] = place
                left[place] = trace[place].answer
            if not queue.running:
                time.sleep(0.0005)
                continue
            outputs = engine.step(0.005)
            now = time.perf_counter() - began
            for output in outputs:
                place = place_of[output.request_id]
                left[place] -= len(output.token_ids)
                if left[place] <= 0:
                    ends.setdefault(place, now)
                if output.finish is not None:
                    queue.release(place, now)
        tokens = sum(each.answer for each in trace)
        latencies = [ends[place] - each.at for place, each in enumerate(trace)]
        return {"p95_s": percentile(latencies, SHARE), "tokens_per_s": tokens / (max(ends.values()) - trace[0].at)}


def real(plan: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The strategies in turns on the real engine; each beside what the calibrated model says of the same requests."""
    bench = calibration.Bench(folder)
    options = calibration.calibrate(bench)
    load = plan["real"]["workload"]
    prompts, answers = parse_lengths(load["prompt"], 1), parse_lengths(load["answer"], 1)
    arms = {"inflight": Policy("inflight", plan["max_running"])}
    arms |= {f"static {size}": policy("static", {"batch": size}, 0) for size in plan["real"]["static_batches"]}
    turns = []
    for turn in range(plan["real"]["turns"]):
        trace = poisson(plan["real"]["rate"], prompts, answers, plan["real"]["requests"], f"{plan['seed']} real {turn}")
        for name, how in arms.items():
            outcome = Replica(options, how).run(trace)
            last = max(each.last for each in outcome.served) - trace[0].at
            expected = {
                "p95_s": percentile([each.latency for each in outcome.served], SHARE),
                "tokens_per_s": sum(each.answer for each in trace) / last,
            }
            turns.append({"turn": turn, "arm": name, "measured": RealRun(bench, how).run(trace), "predicted": expected})
            print(json.dumps(turns[-1]), flush=True)
    bench.close()
    return {"what": plan["real"], "costs": step_costs.engine_options(options), "turns": turns}


def options_of(name: str, system: dict[str, Any], plan: dict[str, Any]) -> SimulatedOptions:
    """Costs of a system of workloads.json; those of the CPU are what calibration.py measured and wrote."""
    if name == "cpu":
        return calibration.recorded(ACCURACY)
    config = step_costs.architecture(system["model"])
    recipe, gpu = step_costs.recipe_named(system["quantization"]), gpu_named(system["gpu"])
    replica = step_costs.Replica(
        system["model"], config, recipe, gpu, system["tensor_parallel"], plan["max_running"], 2048
    )
    return step_costs.options_for(replica, step_costs.Efficiency())


def simulate(name: str, plan: dict[str, Any], output: Path, workloads: Sequence[str] = ()) -> None:
    """One system under these workloads (none: all), on all cores; writes a record and a plot of each."""
    system = plan["systems"][name]
    options = msgspec.structs.replace(options_of(name, system, plan), max_running=plan["max_running"])
    loads = [load for load in plan["workloads"] if not workloads or load["name"] in workloads]
    with ProcessPoolExecutor() as pool:
        for load in loads:
            found = compare(options, plan, load, pool)
            print(json.dumps({"system": name, "workload": load["name"], "at": found["at_limits"]}), flush=True)
            record = {"system": system, "costs": step_costs.engine_options(options)} | found
            (output / f"{name}-{load['name']}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            drawing = plot(name, found, max(plan["latency_limits"]))
            (output / f"{name}-{load['name']}.svg").write_text(drawing, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--system", nargs="+", choices=("cpu", "h200"), help="in virtual time, costs of these")
    parser.add_argument("--workloads", nargs="+", default=(), metavar="NAME", help="only these; default: all")
    parser.add_argument("--real", action="store_true", help="on the real engine")
    parser.add_argument("--engine", type=types.openvino_engine, default=str(ENGINE), help="engine directory (openvino)")
    parser.add_argument("--output", type=types.output_folder, default=FOLDER)
    args = parser.parse_args(arguments)
    if args.real == (args.system is not None):
        parser.error("give --system or --real")
    plan: dict[str, Any] = json.loads((FOLDER / "workloads.json").read_text(encoding="utf-8"))
    known = [load["name"] for load in plan["workloads"]]
    strange = next((name for name in args.workloads if name not in known), None)
    if strange is not None:
        parser.error(f"--workloads: {strange!r} is none of {', '.join(known)}")
    args.output.mkdir(parents=True, exist_ok=True)
    if args.real:
        record = real(plan, args.engine)
        (args.output / "real.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return 0
    for name in args.system:
        simulate(name, plan, args.output, args.workloads)
    return 0


if __name__ == "__main__":
    run_main(main)
