"""Measures a served model under load with the real perf_analyzer: gRPC streaming at several concurrencies or rates.

Prints a table and writes results.json, results.csv and report.html. What the figures mean is defined in
`load/stats.py`; tokens are counted, not responses. Exit status: 0 done, 1 an error (one sentence says which),
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from build_engine.arguments import Parser
from inflight_tools.clients.grpc import Connection
from inflight_tools.common.layout import CACHE
from inflight_tools.common.report import Failure, Progress, run_main
from inflight_tools.common.resources import Sampler, listener, processor
from inflight_tools.load.compare import check_levels, compare, read_about, read_levels
from inflight_tools.load.lengths import SHAREGPT_ANSWER, SHAREGPT_PROMPT, parse_lengths
from inflight_tools.load.perf_analyzer import Load, find_perf_analyzer, measure, version_of
from inflight_tools.load.profile_export import Request
from inflight_tools.load.report import comparison_table, terminal_table, write
from inflight_tools.load.stats import LevelResult, Objective, Run, summarize
from inflight_tools.load.workload import Workload, parse_parameters, words_per_token

_LEAST_REQUESTS = 32
_LIMITS = ("ttft", "tpot", "latency")
_Number = TypeVar("_Number", int, float)


def parse(arguments: Sequence[str] | None = None, program: str | None = None) -> argparse.Namespace:
    """Our options."""
    parser = Parser(prog=program, description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option("--url", default="127.0.0.1:8001", metavar="HOST:PORT", help="gRPC endpoint (default: %(default)s)")
    option("--model", default="llm", help="model name (default: %(default)s)")
    load = parser.add_argument_group("load")
    level = load.add_mutually_exclusive_group()
    level.add_argument(
        "--concurrency", type=_counts, metavar="N,N", help="requests in flight, per level (default: 1,4,16)"
    )
    level.add_argument("--rate", type=_rates, metavar="R,R", help="requests sent per second instead, per level")
    option = load.add_argument
    option("--arrivals", choices=("poisson", "constant"), default="poisson", help="with --rate (default: poisson)")
    option(
        "--prompt-tokens", default="64", metavar="D", help="a number, uniform:LOW-HIGH, sharegpt[:MEAN] (default: 64)"
    )
    option("--max-tokens", default="64", metavar="D", help="of the answers, likewise (default: 64)")
    option("--stop-at-eos", action="store_true", help="let answers end by themselves; else all have their --max-tokens")
    option("--seed", type=int, default=0, help="of the prompts; another seed meets no cached prefix (default: 0)")
    option("--parameter", action="append", default=[], metavar="NAME=VALUE", help="any further request parameter")
    measured = parser.add_argument_group("measurement")
    option = measured.add_argument
    least = f"default: 4 × concurrency, at least {_LEAST_REQUESTS}"
    option("--requests", type=_positive, metavar="N", help=f"measured per level and run ({least})")
    option("--warmup", type=_count, metavar="N", help="sent before those and not measured (default: concurrency)")
    option("--runs", type=_positive, default=1, metavar="N", help="of every level, taking turns (default: %(default)s)")
    option("--timeout", type=_amount, default=600.0, metavar="S", help="longest time of one run (default: %(default)s)")
    option("--perf-analyzer", type=Path, metavar="PROGRAM", help="default: the one in .cache, else on PATH")
    results = parser.add_argument_group("results")
    option = results.add_argument
    option(
        "--slo", action="append", default=[], metavar="NAME=MS", help="limit on ttft, tpot or latency, for the goodput"
    )
    option("--price-per-hour", type=_amount, metavar="X", help="of the machine, for the cost per 1,000 tokens")
    option("--compare", type=Path, metavar="FILE", help="results.json of another test, to be compared with this one")
    option("--output", type=Path, metavar="DIR", help="for the files (default: .cache/load_test/TIME)")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    return _whole(text, 0)


def _positive(text: str) -> int:
    return _whole(text, 1)


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"must be {least} or more, but is {text!r}")
    return number


def _amount(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, but is {text!r}")
    return number


def _counts(text: str) -> list[int]:
    try:
        counts = [_positive(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError("must be numbers from 1 on, such as 1,4,16") from None
    return _each_once(counts)


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = [0.0]
    if not all(0 < rate < 1e6 for rate in rates):
        raise argparse.ArgumentTypeError("must be numbers above 0, such as 0.5,2")
    return _each_once(rates)


def _each_once(numbers: list[_Number]) -> list[_Number]:
    for number in numbers:
        if numbers.count(number) > 1:
            raise argparse.ArgumentTypeError(f"names {number:g} twice: measure a level again with --runs")
    return numbers


def parse_objective(texts: Sequence[str]) -> Objective:
    """NAME=MS pairs. Raises `Failure`."""
    objective = Objective()
    for text in texts:
        name, _, value = text.partition("=")
        try:
            limit = float(value)
        except ValueError:
            limit = 0.0
        if name not in _LIMITS or not limit > 0:
            raise Failure(
                f"--slo must be one of {', '.join(_LIMITS)} with milliseconds, such as ttft=200, but is {text!r}."
            )
        objective = replace(objective, **{name: limit})
    return objective


def levels(arguments: argparse.Namespace) -> list[Load]:
    """The levels of load, in order."""
    if arguments.rate:
        return [Load(rate=rate, arrivals=arguments.arrivals) for rate in arguments.rate]
    return [Load(concurrency=count) for count in arguments.concurrency or [1, 4, 16]]


def plan(arguments: argparse.Namespace, load: Load) -> tuple[int, int]:
    """(measured requests, warm-up) of one run at a level. Raises `Failure` when nothing steady could be measured."""
    width = load.concurrency or 1
    count = arguments.requests or max(4 * width, _LEAST_REQUESTS)
    if count < width:
        raise Failure(f"--requests is {count}, less than the concurrency {width}: nothing steady could be measured.")
    return count, width if arguments.warmup is None else arguments.warmup


def check_answers(load: str, requests: Sequence[Request], sent: int, warmup: int) -> None:
    """Raises `Failure` when a run leaves nothing to compute figures of; `requests` are those that were answered."""
    if len(requests) <= warmup:
        raise Failure(
            f"{load}: only {len(requests)} of {sent} requests were answered, and the first {warmup} are warm-up: look "
            "at the server's log."
        )
    if not any(request.tokens for request in requests[warmup:]):
        raise Failure(
            f"{load}: none of its {len(requests) - warmup} answers has a token, so nothing can be measured: see what "
            "the model answers with inflight chat."
        )


def check_place(folder: Path) -> None:
    """Raises `Failure` when the results could not be written, before anything is measured."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "may not be written to" if there.is_dir() else f"is no folder ({there} is a file)"
        raise Failure(f"--output {folder} {why}: name another.")


def run(arguments: argparse.Namespace) -> tuple[list[LevelResult], dict[str, Any]]:
    """Measure every level, `--runs` times; levels take turns, so that a change of the machine meets them all.

    Returns the figures, and what the server says of itself.
    """
    program = find_perf_analyzer(arguments.perf_analyzer)
    objective = parse_objective(arguments.slo)
    prompt = parse_lengths(arguments.prompt_tokens, SHAREGPT_PROMPT)
    answer = parse_lengths(arguments.max_tokens, SHAREGPT_ANSWER)
    parameters = parse_parameters(arguments.parameter)
    loads = levels(arguments)
    plans = {str(load): plan(arguments, load) for load in loads}
    with Connection(arguments.url) as connection:
        batched = connection.is_batched(arguments.model, "auto")
        words = words_per_token(connection, arguments.model, batched)
        said = connection.model_info(arguments.model, batched)
        told = {name: said.get(name) for name in ("release", "engine", "engine_version", "context")}
        told["triton"] = connection.release()
    workload = Workload(prompt, answer, words, arguments.seed, arguments.stop_at_eos, parameters)
    server = listener(arguments.url)
    told["same_machine"] = server is not None
    progress = Progress()
    found: dict[str, list[Run]] = {str(load): [] for load in loads}
    for number in range(arguments.runs):
        for load in loads:
            count, warmup = plans[str(load)]
            inputs = workload.requests(f"{load} run {number}", warmup + count)
            what = f"{load}, run {number + 1} of {arguments.runs}" if arguments.runs > 1 else str(load)

            def tick(seconds: float, what: str = what) -> None:
                progress.show(f"{what}: {seconds:.0f} s")

            with ExitStack() as stack:
                stack.callback(progress.clear)
                sampler = stack.enter_context(Sampler(server)) if server else None
                requests = measure(program, arguments.url, arguments.model, load, inputs, arguments.timeout, tick)
            check_answers(str(load), requests, len(inputs), warmup)
            found[str(load)].append(Run(requests, warmup, sampler.samples if sampler else ()))
    price = arguments.price_per_hour
    results = [
        summarize(str(load), load.concurrency or load.rate or 0, found[str(load)], load.concurrency, objective, price)
        for load in loads
    ]
    return results, told


def about(
    arguments: argparse.Namespace, server: Mapping[str, Any] | None = None, generator: str = ""
) -> dict[str, Any]:
    """What was measured where; `server` is what the server says of itself, `generator` what sent the requests."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    return {
        "settings": settings,
        "client_machine": {
            "cpus": os.cpu_count(),
            "architecture": platform.machine(),
            "system": platform.platform(),
            "processor": processor(),
            "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "python": platform.python_version(),
            "perf_analyzer": generator,
        },
        "server": dict(server or {}),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Measure, print, write."""
    from rich.console import Console  # before the measurement: it would be a pity to miss it afterwards

    options = parse(arguments, program)
    folder = options.output or CACHE / "load_test" / time.strftime("%Y%m%d-%H%M%S")
    check_place(folder)
    other = read_levels(options.compare) if options.compare else []
    if other:
        check_levels([str(load) for load in levels(options)], other)
    results, server = run(options)
    generator = version_of(find_perf_analyzer(options.perf_analyzer))

    console = Console(width=None if sys.stdout.isatty() else 160)
    prompt = sum(result.prompt_tokens for result in results) / len(results)
    answers = f"up to {options.max_tokens}" if options.stop_at_eos else options.max_tokens
    title = f"{options.model} at {options.url}: prompts of {prompt:.0f} tokens on average, answers of {answers}"
    console.print(terminal_table(results, title))
    ratios = compare([result.to_json() for result in results], other) if other else []
    if ratios:
        console.print(comparison_table(ratios, str(options.compare)))
    told = read_about(options.compare) if options.compare else None
    write(folder, about(options, server, generator), results, title, ratios, other, told)
    print(f"written: {folder}/results.json, results.csv, report.html")
    return 0


if __name__ == "__main__":
    run_main(main)
