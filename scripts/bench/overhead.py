#!/usr/bin/env python3
"""Measures what serving costs: tokens/s through Triton and gRPC over tokens/s of the bare OpenVINO pipeline.

Both sides answer the same prompts, greedy, with the same number of tokens, on the same engine directory with the same
scheduler settings, in turns: while one side runs, the processes of the other are stopped (SIGSTOP). No prompt is used
twice, so that a prefix cache helps neither. The client is perf_analyzer, on the same machine. A turn in which other
programs used the CPU is repeated.

Exit status: 0 done; 1 an error, or with --check-tokens a token that differs (one sentence says which); 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.arms import Arm, BareArm, BareWorker, Prompt, ServedArm
from bench.results import write_results
from bench.served_model import ServedModel
from bench.simulated_model import write_model
from bench.turns import Comparison, Record, Rules, Turns, compare, running
from build_engine.arguments import Parser
from inflight_tools.clients.grpc import Connection
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import MODEL_REPOSITORY, REPOSITORY
from inflight_tools.common.report import Failure, Progress, run_main
from inflight_tools.load.lengths import Lengths
from inflight_tools.load.perf_analyzer import find_perf_analyzer
from inflight_tools.load.prompts import prompts
from inflight_tools.server.server import Server, ServerConfig

try:
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError:
    raise SystemExit(
        f"error: the package rich is missing in {sys.executable}: run this with .venv/bin/python."
    ) from None

RESULTS = REPOSITORY / "docs" / "benchmarks" / "overhead.json"
_PARTS = ("server", "stub", "engine", "client")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Our options."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", default="llm", help="model name (default: %(default)s)")
    parser.add_argument(
        "--repository", type=types.folder, default=str(MODEL_REPOSITORY), help="default: model_repository"
    )
    parser.add_argument(
        "--engine",
        type=types.openvino_engine,
        metavar="DIR",
        help="serve this engine directory instead of a model of the repository",
    )
    parser.add_argument("--concurrency", type=types.counts, default=[1, 8, 32], metavar="N,N", help="default: 1,8,32")
    parser.add_argument("--repeats", type=types.count, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--waves", type=types.count, default=3, metavar="N", help="requests per run: N × concurrency (default: 3)"
    )
    parser.add_argument(
        "--least", type=types.count, default=8, metavar="N", help="requests per run at the least (default: %(default)s)"
    )
    parser.add_argument(
        "--prompt-tokens",
        type=types.count,
        default=32,
        metavar="N",
        help="on average: N/2 to 3N/2, evenly (default: %(default)s)",
    )
    parser.add_argument(
        "--max-tokens", type=types.count, default=64, metavar="N", help="of each answer (default: %(default)s)"
    )
    parser.add_argument("--seed", type=types.count_or_none, default=0, help="of the prompts (default: %(default)s)")
    parser.add_argument(
        "--quiet",
        type=types.share,
        default=0.05,
        metavar="X",
        help="repeat a turn in which other programs used more than this share of the CPU (default: %(default)s)",
    )
    parser.add_argument(
        "--retries", type=types.count_or_none, default=3, metavar="N", help="of such a turn (default: %(default)s)"
    )
    parser.add_argument(
        "--patience",
        type=types.not_negative,
        default=60.0,
        metavar="S",
        help="longest wait for a quiet moment (default: %(default)s)",
    )
    parser.add_argument("--engine-arm", action="store_true", help="also run the engine class alone, without Triton")
    parser.add_argument(
        "--check-tokens",
        type=types.count,
        nargs="?",
        const=20,
        metavar="N",
        help="only compare the tokens of N prompts (20)",
    )
    parser.add_argument(
        "--output", type=types.output_file, default=RESULTS, help="JSON file (default: docs/benchmarks/overhead.json)"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep what --output has of other concurrencies, measured in other runs"
    )
    return parser.parse_args(arguments)


class Sides:
    """Both sides, started and paused, and prompts for them. As a context manager it stops them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Nothing is started yet."""
        self._arguments = arguments
        self._texts = prompts(f"overhead {arguments.seed}", 2 * arguments.prompt_tokens)
        mean = arguments.prompt_tokens
        self._lengths = Lengths("uniform", max(mean // 2, 1), mean + mean // 2, mean).draws(
            f"overhead {arguments.seed}"
        )
        self._stack = ExitStack()

    def __enter__(self) -> Sides:
        """Start. Raises `Failure`."""
        arguments = self._arguments
        with self._stack as stack:
            repository = arguments.repository.absolute()
            if arguments.engine is not None:
                if not (arguments.engine / "engine.json").is_file():
                    raise Failure(f"--engine: {arguments.engine} is no engine directory, it has no engine.json.")
                if arguments.model != "llm":
                    raise Failure("--model: an engine directory is served as llm; leave --model or --engine out.")
                repository = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inflight-bench-")))
                write_model(repository, arguments.engine.absolute(), None, {})
            server = stack.enter_context(Server(ServerConfig(repository=repository, models=(arguments.model,))))
            server.wait_ready()
            connection = stack.enter_context(Connection(server.grpc_url))
            self._model = ServedModel.read(connection, repository, arguments.model)
            self.served = ServedArm(server, connection, find_perf_analyzer(), arguments.model)
            stack.callback(self.served.resume)  # a stopped process does not end in order
            self.served.pause()
            worker = stack.enter_context(BareWorker(self._model.worker_spec()))
            self.bare = BareArm(worker)
            self.engine = BareArm(worker, "engine")
            self.bare.pause()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        """Stop."""
        self._stack.close()

    def supply(self, count: int) -> list[Prompt]:
        """Prompts that were never used before."""
        return self._model.prompts(self._texts, self._lengths, count)

    def different_tokens(self, count: int) -> list[str]:
        """Prompts whose greedy tokens differ between the sides, each prompt sent alone."""
        several, max_tokens = self.supply(count), self._arguments.max_tokens
        with running(self.bare, self.supply(1)[0]):
            expected = self.bare.run(several, 1, max_tokens).token_ids
        with running(self.served, self.supply(1)[0]):
            found = [self.served.tokens_of(prompt, max_tokens) for prompt in several]
        return [prompt.text for prompt, one, other in zip(several, expected, found, strict=True) if one != other]


def table(rows: Sequence[Comparison]) -> Table:
    """The comparison for a person."""
    made = Table(title="over the bare pipeline: median (least–most of the repeats)", title_justify="left")
    for name in ("arm", "concurrency", "tokens/s", "bare tokens/s", "ratio", "CPU ratio", "added TTFT, ms"):
        made.add_column(name, justify="right")
    for name in ("tokens/response", "CPU µs/token: server + stub + engine + client (bare)", "CPU used by others"):
        made.add_column(name, justify="right")
    for row in rows:
        parts = " + ".join(f"{row.cpu_us_per_token[part]:.0f}" for part in _PARTS if part in row.cpu_us_per_token)
        made.add_row(
            row.arm,
            str(row.concurrency),
            f"{row.tokens_per_s:.1f}",
            f"{row.base_tokens_per_s:.1f}",
            f"{row.ratio:.3f} ({min(row.ratios):.3f}–{max(row.ratios):.3f})",
            f"{row.cpu_ratio:.3f}",
            f"{row.added_ttft_ms:.1f} ({min(row.added_ttfts_ms):.1f}–{max(row.added_ttfts_ms):.1f})",
            f"{row.tokens_per_response:.2f}",
            f"{parts} ({row.base_cpu_us_per_token['engine']:.0f})",
            f"≤ {100 * row.cpu_share_of_others:.0f} %",
        )
    return made


def kept(path: Path, concurrencies: Sequence[int]) -> list[Record]:
    """Records of an earlier run at other concurrencies; none where there is no such file. Raises `Failure`."""
    if not path.exists():
        return []
    try:
        records = [Record(**each) for each in json.loads(path.read_text(encoding="utf-8"))["records"]]
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(f"--keep: {path} is not a file of this benchmark ({error!r}): name another --output.") from None
    return [record for record in records if record.concurrency not in concurrencies]


def write(path: Path, arguments: argparse.Namespace, rows: Sequence[Comparison], records: Sequence[Record]) -> None:
    """Settings, machine, comparison and raw records."""
    write_results(
        path,
        "tokens/s through tritonserver and gRPC streaming (perf_analyzer) over the bare OpenVINO pipeline",
        "python scripts/bench/overhead.py",
        arguments,
        comparison=[row.to_json() for row in rows],
        records=[asdict(record) for record in records],
    )


def main(given: Sequence[str] | None = None) -> int:
    """Start both sides, take turns, report."""
    arguments = parse(given)
    earlier = kept(arguments.output, arguments.concurrency) if arguments.keep else []
    with Sides(arguments) as sides:
        if arguments.check_tokens:
            count = arguments.check_tokens
            different = sides.different_tokens(count)
            if different:
                raise Failure(f"{len(different)} of {count} prompts gave other tokens, the first is {different[0]!r}.")
            print(f"{count} prompts, {arguments.max_tokens} greedy tokens each: all tokens are equal")
            return 0
        arms: list[Arm] = [sides.bare, *([sides.engine] if arguments.engine_arm else []), sides.served]
        rules = Rules(
            repeats=arguments.repeats,
            waves=arguments.waves,
            least=arguments.least,
            max_tokens=arguments.max_tokens,
            quiet=arguments.quiet,
            retries=arguments.retries,
            patience_s=arguments.patience,
        )
        progress = Progress()
        try:
            records = Turns(arms, sides.supply, rules, progress.show).take(arguments.concurrency)
        finally:
            progress.clear()
    records = sorted(earlier + records, key=lambda record: record.concurrency)
    rows = [row for arm in arms[1:] for row in compare(records, arm.name, "bare")]
    Console(width=None if sys.stdout.isatty() else 180).print(table(rows))
    write(arguments.output, arguments, rows, records)
    return 0


if __name__ == "__main__":
    run_main(main)
