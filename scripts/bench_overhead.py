#!/usr/bin/env python3
"""Measures what serving costs: tokens/s through Triton and gRPC over tokens/s of the bare OpenVINO pipeline.

Both sides answer the same prompts, greedy, with the same number of tokens, on the same engine directory with the same
scheduler settings, in turns: while one side runs, the processes of the other are stopped (SIGSTOP). No prompt is used
twice, so that a prefix cache helps neither. The client is perf_analyzer, on the same machine.

Exit status: 0 done; 1 an error, or with --check-tokens a token that differs (one sentence says which); 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from _client import Connection
from _layout import MODEL_REPOSITORY, REPOSITORY
from _perf_analyzer import find_perf_analyzer
from _prompts import prompts
from _report import Failure, Progress, run_main
from _server import Server, ServerConfig
from bench.arms import Arm, BareArm, BareWorker, Measured, Prompt, ServedArm
from bench.served_model import ServedModel

try:
    import numpy as np
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"error: the package {missing.name} is missing in {sys.executable}: use .venv/bin/python."
    ) from None

RESULTS = REPOSITORY / "docs" / "benchmarks" / "overhead.json"
_LEAST_REQUESTS = 8


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Our options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", default="llm", help="model name (default: %(default)s)")
    parser.add_argument("--repository", type=Path, default=MODEL_REPOSITORY, help="default: model_repository")
    parser.add_argument("--concurrency", type=_counts, default=[1, 8, 32], metavar="N,N", help="default: 1,8,32")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--waves", type=int, default=3, metavar="N", help="requests per level: N × concurrency (default: 3)"
    )
    parser.add_argument("--prompt-tokens", type=int, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="of each answer (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts (default: %(default)s)")
    parser.add_argument("--engine-arm", action="store_true", help="also run the engine class alone, without Triton")
    parser.add_argument(
        "--check-tokens", type=int, nargs="?", const=20, metavar="N", help="only compare the tokens of N prompts (20)"
    )
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="JSON file (default: docs/benchmarks/overhead.json)"
    )
    return parser.parse_args(arguments)


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError("must be numbers from 1 on, such as 1,8,32")
    return counts


@contextmanager
def running(arm: Arm, warm: Prompt) -> Iterator[None]:
    """Only this arm's processes run inside; one small request wakes them up first."""
    arm.resume()
    try:
        arm.warm(warm)
        yield
    finally:
        arm.pause()


class Bench:
    """The arms and the supply of prompts."""

    def __init__(self, arguments: argparse.Namespace, model: ServedModel, arms: Sequence[Arm]) -> None:
        """Every arm is paused."""
        self._arguments = arguments
        self._model = model
        self._arms = list(arms)
        self._texts = prompts(f"overhead {arguments.seed}", 2 * arguments.prompt_tokens)

    def _prompts(self, count: int) -> list[Prompt]:
        return self._model.prompts(self._texts, count, self._arguments.prompt_tokens)

    def measure(self) -> list[dict[str, Any]]:
        """One record per repeat, concurrency and arm, in the order they ran."""
        progress = Progress()
        records = []
        for repeat in range(self._arguments.repeats + 1):  # the first warms caches and compiled kernels up
            for place, concurrency in enumerate(self._arguments.concurrency):
                count = max(_LEAST_REQUESTS, self._arguments.waves * concurrency) if repeat else concurrency
                fresh = self._prompts(count)
                turn = (repeat + place) % 2
                for arm in self._arms if turn else self._arms[::-1]:
                    progress.show(
                        f"repeat {repeat} of {self._arguments.repeats}, concurrency {concurrency}: {arm.name}"
                    )
                    # The engine arm runs in the bare arm's process, whose prefix cache knows the bare arm's prompts.
                    own = self._prompts(count) if arm.name == "engine" else fresh
                    with running(arm, self._prompts(1)[0]):
                        measured = arm.run(own, concurrency, self._arguments.max_tokens)
                    self._check_counts(arm, measured, count)
                    if repeat:
                        records.append(_record(repeat, concurrency, arm, measured))
        progress.clear()
        return records

    def _check_counts(self, arm: Arm, measured: Measured, count: int) -> None:
        wanted = count * self._arguments.max_tokens
        if measured.tokens != wanted:
            raise Failure(
                f"{arm.name} gave {measured.tokens} tokens instead of {wanted}: the sides cannot be compared."
            )

    def different_tokens(self, served: ServedArm, bare: BareArm, count: int) -> list[str]:
        """Prompts whose greedy tokens differ between the sides, each prompt sent alone."""
        several = self._prompts(count)
        max_tokens = self._arguments.max_tokens
        with running(bare, self._prompts(1)[0]):
            expected = bare.run(several, 1, max_tokens).token_ids
        with running(served, self._prompts(1)[0]):
            found = [served.tokens_of(prompt, max_tokens) for prompt in several]
        return [prompt.text for prompt, one, other in zip(several, expected, found, strict=True) if one != other]


def _record(repeat: int, concurrency: int, arm: Arm, measured: Measured) -> dict[str, Any]:
    ttfts = measured.ttfts_ms
    responses = sum(len(request.arrivals) for request in measured.requests)
    return {
        "repeat": repeat,
        "concurrency": concurrency,
        "arm": arm.name,
        "requests": len(measured.requests),
        "tokens_per_s": measured.tokens_per_s,
        "ttft_p50_ms": float(np.percentile(ttfts, 50)),
        "tokens_per_response": measured.tokens / responses,
        "cpu_us_per_token": {part: 1e6 * seconds / measured.tokens for part, seconds in measured.cpu_s.items()},
    }


def compare(records: Sequence[dict[str, Any]], arm: str) -> list[dict[str, Any]]:
    """`arm` over bare at each concurrency: the ratio of each repeat, their median and spread, and the added TTFT."""
    rows = []
    for concurrency in dict.fromkeys(record["concurrency"] for record in records):
        of = {(record["arm"], record["repeat"]): record for record in records if record["concurrency"] == concurrency}
        repeats = sorted({repeat for name, repeat in of if name == arm})
        pairs = [(of[arm, repeat], of["bare", repeat]) for repeat in repeats]
        ratios = [ours["tokens_per_s"] / bare["tokens_per_s"] for ours, bare in pairs]
        added = [ours["ttft_p50_ms"] - bare["ttft_p50_ms"] for ours, bare in pairs]
        rows.append(
            {
                "concurrency": concurrency,
                "arm": arm,
                "tokens_per_s": statistics.median(ours["tokens_per_s"] for ours, _ in pairs),
                "bare_tokens_per_s": statistics.median(bare["tokens_per_s"] for _, bare in pairs),
                "ratio": statistics.median(ratios),
                "ratio_least": min(ratios),
                "ratio_most": max(ratios),
                "ratios": ratios,
                "added_ttft_p50_ms": statistics.median(added),
                "added_ttft_least_ms": min(added),
                "added_ttft_most_ms": max(added),
                "bare_ttft_p50_ms": statistics.median(bare["ttft_p50_ms"] for _, bare in pairs),
                "tokens_per_response": statistics.median(ours["tokens_per_response"] for ours, _ in pairs),
                "cpu_us_per_token": {
                    part: statistics.median(ours["cpu_us_per_token"][part] for ours, _ in pairs)
                    for part in pairs[0][0]["cpu_us_per_token"]
                },
                "bare_cpu_us_per_token": statistics.median(bare["cpu_us_per_token"]["engine"] for _, bare in pairs),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The comparison for a person."""
    made = Table(title=title, title_justify="left")
    names = ("arm", "concurrency", "tokens/s", "bare tokens/s", "ratio (least–most)", "added TTFT ms (least–most)")
    for name in (*names, "tokens/response", "CPU µs/token: server + stub + engine + client (bare)"):
        made.add_column(name, justify="right")
    for row in rows:
        cpu = row["cpu_us_per_token"]
        parts = " + ".join(f"{cpu[part]:.0f}" for part in ("server", "stub", "engine", "client") if part in cpu)
        made.add_row(
            row["arm"],
            str(row["concurrency"]),
            f"{row['tokens_per_s']:.1f}",
            f"{row['bare_tokens_per_s']:.1f}",
            f"{row['ratio']:.3f} ({row['ratio_least']:.3f}–{row['ratio_most']:.3f})",
            f"{row['added_ttft_p50_ms']:.1f} ({row['added_ttft_least_ms']:.1f}–{row['added_ttft_most_ms']:.1f})",
            f"{row['tokens_per_response']:.2f}",
            f"{parts} ({row['bare_cpu_us_per_token']:.0f})",
        )
    return made


def write(path: Path, arguments: argparse.Namespace, rows: Sequence[dict[str, Any]], records: Sequence[Any]) -> None:
    """Settings, machine, comparison and raw records."""
    settings = {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)}
    content = {
        "what": "tokens/s through tritonserver and gRPC streaming (perf_analyzer) over the bare OpenVINO pipeline",
        "command": "python scripts/bench_overhead.py",
        "settings": settings,
        "machine": {"cpus": os.cpu_count(), "architecture": platform.machine(), "system": platform.system()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "comparison": list(rows),
        "records": list(records),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Start both sides, take turns, report."""
    arguments = parse()
    perf_analyzer = find_perf_analyzer()
    with ExitStack() as stack:
        server = stack.enter_context(
            Server(ServerConfig(repository=arguments.repository.absolute(), models=(arguments.model,)))
        )
        server.wait_ready()
        connection = stack.enter_context(Connection(server.grpc_url))
        model = ServedModel.read(connection, arguments.repository.absolute(), arguments.model)
        served = ServedArm(server, connection, perf_analyzer, arguments.model)
        stack.callback(served.resume)  # a stopped process does not end in order
        served.pause()
        worker = stack.enter_context(BareWorker(model.worker_spec()))
        bare = BareArm(worker)
        bare.pause()
        arms: list[Arm] = [bare, served]
        if arguments.engine_arm:
            arms.insert(1, BareArm(worker, "engine"))
        bench = Bench(arguments, model, arms)
        if arguments.check_tokens:
            different = bench.different_tokens(served, bare, arguments.check_tokens)
            if different:
                raise Failure(
                    f"{len(different)} of {arguments.check_tokens} prompts gave other tokens, first: {different[0]!r}."
                )
            print(f"{arguments.check_tokens} prompts, {arguments.max_tokens} greedy tokens each: all tokens are equal")
            return 0
        records = bench.measure()
    rows = [
        row
        for name in dict.fromkeys(record["arm"] for record in records)
        if name != "bare"
        for row in compare(records, name)
    ]
    Console(width=None if sys.stdout.isatty() else 180).print(table(rows, "through Triton over the bare pipeline"))
    write(arguments.output, arguments, rows, records)
    print(f"written: {arguments.output}")
    return 0


if __name__ == "__main__":
    run_main(main)
