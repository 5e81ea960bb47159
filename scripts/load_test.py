#!/usr/bin/env python3
"""Measures a served model under load with the real perf_analyzer: gRPC streaming at several concurrencies or rates.

Prints a table and writes JSON and CSV. What the figures mean is defined in scripts/_load_stats.py; tokens are counted,
not responses. Exit status: 0 done, 1 an error (one sentence says which), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from _answer import Response
from _client import Connection, Value, parse_value
from _layout import CACHE
from _load_stats import LevelResult, Percentiles, summarize
from _perf_analyzer import Inputs, Load, find_perf_analyzer, measure
from _prompts import prompts
from _report import Failure, Progress, run_main

try:
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError:
    raise SystemExit(
        f"error: the package rich is missing in {sys.executable}: run this with .venv/bin/python."
    ) from None

_PROBE_WORDS = 200
_LEAST_REQUESTS = 32


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Our options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--url", default="127.0.0.1:8001", metavar="HOST:PORT", help="gRPC endpoint (default: %(default)s)"
    )
    parser.add_argument("--model", default="llm", help="model name (default: %(default)s)")
    load = parser.add_mutually_exclusive_group()
    load.add_argument(
        "--concurrency", type=_counts, metavar="N,N", help="requests in flight, one level each (default: 1,4,16)"
    )
    load.add_argument("--rate", type=_rates, metavar="R,R", help="requests sent per second instead, one level each")
    parser.add_argument(
        "--arrivals", choices=("poisson", "constant"), default="poisson", help="with --rate (default: poisson)"
    )
    parser.add_argument(
        "--prompt-tokens", type=_positive, default=64, metavar="N", help="about so many (default: %(default)s)"
    )
    parser.add_argument(
        "--max-tokens", type=_positive, default=64, metavar="N", help="of each answer (default: %(default)s)"
    )
    parser.add_argument(
        "--stop-at-eos", action="store_true", help="let answers end by themselves; else all have --max-tokens"
    )
    parser.add_argument(
        "--requests",
        type=_positive,
        metavar="N",
        help=f"measured per level (default: 4 × concurrency, at least {_LEAST_REQUESTS})",
    )
    parser.add_argument(
        "--warmup", type=_count, metavar="N", help="sent before those and not measured (default: concurrency)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the prompts; another seed meets no cached prefix (default: 0)"
    )
    parser.add_argument(
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any further request parameter; repeat for more",
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="longest time of one level (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="for results.json and .csv (default: .cache/load_test/TIME)"
    )
    parser.add_argument(
        "--perf-analyzer", type=Path, metavar="PROGRAM", help="default: the one in .cache, else on PATH"
    )
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _counts(text: str) -> list[int]:
    try:
        return [_positive(part) for part in text.split(",")]
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError("must be numbers from 1 on, such as 1,4,16") from None


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = [0.0]
    if not all(0 < rate < 1e6 for rate in rates):
        raise argparse.ArgumentTypeError("must be numbers above 0, such as 0.5,2")
    return rates


def parse_parameters(texts: Sequence[str]) -> dict[str, Value]:
    """NAME=VALUE pairs as values of the inputs they name. Raises `Failure`."""
    found: dict[str, Value] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise Failure(f"--parameter must be NAME=VALUE, but is {text!r}.")
        found[name] = parse_value(name, value)
    return found


class Workload:
    """Makes the requests of each level: distinct prompts of about the wanted length, all else equal."""

    def __init__(self, arguments: argparse.Namespace, words: int) -> None:
        """`words` per prompt."""
        self._seed = arguments.seed
        self._words = words
        self._common: dict[str, Value] = {
            "stream": True,
            "max_tokens": arguments.max_tokens,
            "ignore_eos": not arguments.stop_at_eos,
            "return_num_input_tokens": True,
            "return_num_output_tokens": True,
            **parse_parameters(arguments.parameter),
        }

    def requests(self, load: Load, count: int) -> list[Inputs]:
        """`count` requests for a level; no two levels share a prompt."""
        texts: Iterator[str] = prompts(f"{self._seed} {load}", self._words)
        return [
            {name: _listed(value) for name, value in {"text_input": text, **self._common}.items()}
            for text in islice(texts, count)
        ]


def _listed(value: Value) -> Sequence[str | int | float | bool]:
    if isinstance(value, bytes):
        return [value.decode()]
    return [value] if isinstance(value, (str, int, float)) else list(value)


def words_for(connection: Connection, model: str, batched: bool, tokens: int) -> int:
    """How many words make about `tokens` prompt tokens at this model: one request tells. Raises `Failure`."""
    probe: dict[str, Value] = {
        "text_input": next(prompts("probe", _PROBE_WORDS)),
        "max_tokens": 1,
        "return_num_input_tokens": True,
    }
    answers: list[Response] = list(connection.stream(model, probe, batched))
    counts = answers[-1].outputs.get("num_input_tokens")
    if not counts:
        raise Failure(
            f"the model {model!r} does not tell its num_input_tokens: load_test.py needs a model of this backend."
        )
    return max(1, round(tokens * _PROBE_WORDS / int(counts[0])))


def levels(arguments: argparse.Namespace) -> list[Load]:
    """The levels of load, in order."""
    if arguments.rate:
        return [Load(rate=rate, arrivals=arguments.arrivals) for rate in arguments.rate]
    return [Load(concurrency=count) for count in arguments.concurrency or [1, 4, 16]]


def run(arguments: argparse.Namespace) -> list[LevelResult]:
    """Measure every level."""
    program = find_perf_analyzer(arguments.perf_analyzer)
    with Connection(arguments.url) as connection:
        batched = connection.is_batched(arguments.model, "auto")
        workload = Workload(arguments, words_for(connection, arguments.model, batched, arguments.prompt_tokens))
    progress = Progress()
    results = []
    for load in levels(arguments):
        width = load.concurrency or 1
        count = arguments.requests or max(4 * width, _LEAST_REQUESTS)
        warmup = width if arguments.warmup is None else arguments.warmup
        if count < width:
            raise Failure(
                f"--requests is {count}, less than the concurrency {width}: nothing steady could be measured."
            )
        inputs = workload.requests(load, warmup + count)

        def tick(seconds: float, load: Load = load) -> None:
            progress.show(f"{load}: {seconds:.0f} s")

        try:
            measured = measure(program, arguments.url, arguments.model, load, inputs, arguments.timeout, tick)
        finally:
            progress.clear()
        results.append(summarize(str(load), measured, warmup, load.concurrency))
    return results


def table(results: Sequence[LevelResult], title: str) -> Table:
    """The figures for a person."""
    made = Table(
        title=title, title_justify="left", caption="TTFT, ITL, latency in ms: p50 / p90 / p99", caption_justify="left"
    )
    for name in ("load", "requests/s", "tokens/s", "TTFT", "inter-token latency", "latency", "tokens/response"):
        made.add_column(name, justify="left" if name == "load" else "right", no_wrap=True)
    for result in results:
        made.add_row(
            result.load,
            f"{result.requests_per_s:.2f}",
            f"{result.tokens_per_s:.1f}",
            _three(result.ttft),
            _three(result.itl),
            _three(result.latency),
            f"{result.tokens_per_response:.2f}",
        )
    return made


def _three(times: Percentiles) -> str:
    return " / ".join(f"{value:.1f}" if value < 100 else f"{value:.0f}" for value in (times.p50, times.p90, times.p99))


def write(folder: Path, arguments: argparse.Namespace, results: Sequence[LevelResult]) -> None:
    """results.json (settings, machine, figures) and results.csv (one row per level)."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    content = {
        "settings": settings,
        "machine": {"cpus": os.cpu_count(), "architecture": platform.machine(), "system": platform.platform()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "levels": [result.to_json() for result in results],
    }
    text = json.dumps(_without_nan(content), indent=1, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    rows = [result.to_row() for result in results]
    with (folder / "results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null says that there was nothing to measure."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> int:
    """Measure, print, write."""
    arguments = parse()
    results = run(arguments)
    length = f"up to {arguments.max_tokens}" if arguments.stop_at_eos else f"{arguments.max_tokens}"
    prompt = sum(result.prompt_tokens for result in results) / len(results)
    title = f"{arguments.model} at {arguments.url}: prompts of {prompt:.0f} tokens, answers of {length}"
    Console(width=None if sys.stdout.isatty() else 160).print(table(results, title))
    folder = arguments.output or CACHE / "load_test" / time.strftime("%Y%m%d-%H%M%S")
    write(folder, arguments, results)
    print(f"written: {folder}/results.json, {folder}/results.csv")
    return 0


if __name__ == "__main__":
    run_main(main)
