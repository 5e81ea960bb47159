#!/usr/bin/env python3
"""How many GPUs does this traffic need at this latency, at what cost? A model, not a measurement.

The simulated engine's batching and cost model run in virtual time: requests arrive by a Poisson process, the highest
rate at which one replica keeps the objective is found by bisection, and the traffic is divided by it. Costs of a step
come from datasheets and an assumed efficiency (docs/capacity.md). Exit status: 0 done, 1 an error or an objective out
of reach.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.step_costs import Efficiency, Replica, architecture, describe, engine_options, options_for, recipe_named
from bench.virtual import Policy, percentile, poisson
from bench.virtual import Replica as Simulation
from build_engine.arguments import Parser
from build_engine.errors import UserMistake
from build_engine.planning.gpus import gpu_named
from inflight.engines.simulated.cost import SimulatedOptions
from inflight_tools.common import option_types as types
from inflight_tools.common.report import Failure, run_main
from inflight_tools.load.lengths import SHAREGPT_ANSWER, SHAREGPT_PROMPT, Lengths, parse_lengths

MOST_REQUESTS = 20_000
LENGTHS = types.accepted_by(lambda text: parse_lengths(text, 1))
_SPANS = 20
PRECISION = 0.02  # of the rate that bisection ends with


@dataclass(frozen=True, slots=True)
class Objective:
    """`share` of the requests have their first token within `ttft_s`, and the others at most `tpot_s` apart."""

    ttft_s: float
    tpot_s: float
    share: float

    def met(self, figures: Figures) -> bool:
        """Whether a simulated replica kept both."""
        return figures.ttft_s <= self.ttft_s and figures.tpot_s <= self.tpot_s


@dataclass(frozen=True, slots=True)
class Figures:
    """One replica at one rate; times are percentiles at the objective's share, in seconds."""

    rate: float
    ttft_s: float
    tpot_s: float
    tokens_per_s: float  # generated
    sequences: float  # in the engine or its queue, mean
    requests: int  # simulated


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one replica is offered, whatever the rate. `requests` at least; more where queues grow slowly."""

    prompts: Lengths
    answers: Lengths
    shared_prefix: int
    requests: int
    seed: int


class Replicas:
    """One kind of replica under one kind of traffic, simulated at any rate."""

    def __init__(self, options: SimulatedOptions, traffic: Traffic, objective: Objective) -> None:
        """Nothing is simulated yet."""
        self._options = options
        self._traffic = traffic
        self._objective = objective

    def at(self, rate: float) -> Figures:
        """Simulate one replica, for so long that no queue hides in the trace: at least 20 times the objective's TTFT
        and 20 times the mean latency. The first quarter is warm-up.
        """
        traffic, objective = self._traffic, self._objective
        count = max(traffic.requests, math.ceil(_SPANS * objective.ttft_s * rate))
        while True:
            count = min(count, MOST_REQUESTS)
            trace = poisson(rate, traffic.prompts, traffic.answers, count, traffic.seed)
            policy = Policy(batch=self._options.max_running)
            served = Simulation(self._options, policy, traffic.shared_prefix).run(trace).served[count // 4 :]
            latency = statistics.fmean(each.latency for each in served)
            figures = Figures(
                rate=rate,
                ttft_s=percentile([each.ttft for each in served], objective.share),
                tpot_s=percentile([each.tpot for each in served if each.arrival.answer > 1] or [0.0], objective.share),
                tokens_per_s=rate * statistics.fmean(each.arrival.answer for each in served),
                sequences=rate * latency,
                requests=count,
            )
            if count == MOST_REQUESTS or count >= _SPANS * latency * rate or not objective.met(figures):
                return figures
            count = max(2 * count, math.ceil(_SPANS * latency * rate))

    def highest(self) -> Figures:
        """The highest rate that keeps the objective. Raises `Failure` when not even a lone request does."""
        rate = 0.01
        best = self.at(rate)
        if not self._objective.met(best):
            raise Failure(
                f"even a request alone takes {best.ttft_s * 1e3:.0f} ms to its first token and "
                f"{best.tpot_s * 1e3:.1f} ms a token: no number of these replicas keeps the objective."
            )
        while self._objective.met(found := self.at(rate * 2)):
            best, rate = found, rate * 2
            if rate > 1e5:
                raise Failure("the objective is kept at any rate: give answers of more than nothing.")
        low, high = rate, rate * 2
        while high / low > 1 + PRECISION:
            middle = math.sqrt(low * high)
            found = self.at(middle)
            if self._objective.met(found):
                best, low = found, middle
            else:
                high = middle
        return best


def answer(replica: Replica, efficiency: Efficiency, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed, as data. Costs are in the currency of the price."""
    objective = Objective(args.ttft_ms / 1e3, args.tpot_ms / 1e3, args.percentile / 100)
    traffic = Traffic(
        parse_lengths(args.prompt, SHAREGPT_PROMPT),
        parse_lengths(args.answer, SHAREGPT_ANSWER),
        args.shared_prefix,
        args.requests,
        args.seed,
    )
    options = options_for(replica, efficiency, prefix_caching=args.shared_prefix > 0)
    replicas = Replicas(options, traffic, objective)
    best = replicas.highest()
    needed = max(1, math.ceil(args.rate / best.rate))
    actual = replicas.at(args.rate / needed)
    per_token = args.rate / actual.rate * replica.tensor * args.price_per_hour / 3600 if args.price_per_hour else None
    total = actual.tokens_per_s * needed
    return {
        "what": "a model: datasheet figures times an assumed efficiency, not measured on a GPU",
        "replica": describe(replica, efficiency),
        "engine_options": engine_options(options),
        "traffic": {"rate": args.rate, "prompt": str(traffic.prompts), "answer": str(traffic.answers),
                    "shared_prefix": traffic.shared_prefix, "seed": traffic.seed},
        "objective": asdict(objective),
        "highest_per_replica": asdict(best),
        "replicas": needed,
        "gpus": needed * replica.tensor,
        "utilisation": args.rate / (needed * best.rate),
        "at_this_traffic": asdict(actual),
        "tokens_per_s": total,
        "cost_per_million_tokens": None if per_token is None else per_token / total * 1e6,
    }  # fmt: skip


def show(found: dict[str, Any], price: float | None) -> str:
    """The answer for a person."""
    best, actual, replica = found["highest_per_replica"], found["at_this_traffic"], found["replica"]
    share = round(100 * found["objective"]["share"])
    lines = [
        f"{replica['model']} {replica['quantization']}, a replica is {replica['tensor_parallel']} × {replica['gpu']}",
        f"  one replica keeps the objective up to {best['rate']:.3g} requests/s ({best['tokens_per_s']:.0f} tokens/s)",
        f"  needed for {found['traffic']['rate']:g} requests/s: {found['replicas']} replicas, {found['gpus']} GPUs",
        f"  utilisation {found['utilisation']:.0%} of that limit; {actual['sequences']:.0f} sequences at once in each",
        f"  p{share} TTFT {actual['ttft_s'] * 1e3:.0f} ms, TPOT {actual['tpot_s'] * 1e3:.1f} ms; "
        f"{found['tokens_per_s']:.0f} generated tokens/s in all",
    ]
    if price is not None:
        lines.append(f"  {found['cost_per_million_tokens']:.3g} per million generated tokens at {price:g} per GPU-hour")
    return "\n".join([*lines, f"  ({found['what']})"])


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--model", default="llama-3.1-8b", help="folder with config.json, or a name of architectures.json"
    )
    parser.add_argument("--gpu", default="H200", help="a GPU of build_engine/planning/gpus.json; default: %(default)s")
    parser.add_argument("--quantization", default="fp8", help="a recipe of build_engine; default: %(default)s")
    parser.add_argument("--tensor-parallel", type=types.count, default=1, metavar="N")
    parser.add_argument(
        "--rate", type=types.positive, default=10.0, help="requests/s of the whole traffic; default: %(default)s"
    )
    parser.add_argument(
        "--prompt", type=LENGTHS, default="sharegpt", help="tokens: N, uniform:LOW-HIGH, sharegpt[:MEAN]"
    )
    parser.add_argument("--answer", type=LENGTHS, default="sharegpt", help="the same for answers")
    parser.add_argument(
        "--shared-prefix", type=types.count_or_none, default=0, metavar="N", help="equal tokens that begin every prompt"
    )
    parser.add_argument("--ttft-ms", type=types.positive, default=500.0, help="default: %(default)s")
    parser.add_argument("--tpot-ms", type=types.positive, default=50.0, help="default: %(default)s")
    parser.add_argument(
        "--percentile", type=types.percentile, default=95.0, help="of the requests; default: %(default)s"
    )
    parser.add_argument(
        "--price-per-hour", type=types.not_negative, help="of one GPU; prints the cost of a million tokens"
    )
    parser.add_argument(
        "--max-running", type=types.count, default=256, help="sequences in a batch; default: %(default)s"
    )
    parser.add_argument(
        "--chunk-tokens", type=types.count, default=2048, help="prompt tokens in a step; default: %(default)s"
    )
    defaults = Efficiency()
    parser.add_argument(
        "--memory-efficiency", type=types.positive, default=defaults.memory, help="default: %(default)s"
    )
    parser.add_argument(
        "--compute-efficiency", type=types.positive, default=defaults.compute, help="default: %(default)s"
    )
    parser.add_argument(
        "--overhead-ms", type=types.not_negative, default=defaults.overhead_ms, help="default: %(default)s"
    )
    parser.add_argument("--requests", type=types.count, default=1000, help="simulated at least; default: %(default)s")
    parser.add_argument("--seed", type=types.count_or_none, default=1)
    parser.add_argument("--engine-options", action="store_true", help="print the simulated engine's options and stop")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    args = parser.parse_args(arguments)
    try:
        gpu = gpu_named(args.gpu)
    except UserMistake as error:
        raise Failure(f"{error}.") from None
    config, recipe = architecture(args.model), recipe_named(args.quantization)
    replica = Replica(args.model, config, recipe, gpu, args.tensor_parallel, args.max_running, args.chunk_tokens)
    efficiency = Efficiency(args.memory_efficiency, args.compute_efficiency, args.overhead_ms)
    if args.engine_options:
        print(json.dumps(engine_options(options_for(replica, efficiency, prefix_caching=True))))
        return 0
    found = answer(replica, efficiency, args)
    print(json.dumps(found, indent=1) if args.json else show(found, args.price_per_hour))
    return 0


if __name__ == "__main__":
    run_main(main)
