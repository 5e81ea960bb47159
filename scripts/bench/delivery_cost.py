#!/usr/bin/env python3
"""What delivery costs and how even it is, of several checkouts in turns: CPU time per token of backend, server, client.

The engine is the simulated one in real time, which takes no CPU worth naming, or with `--real` the engine directory's
own. Each checkout has a server of its own; while one is measured the others are stopped (SIGSTOP). Times between
tokens are those of every other benchmark here: the time between two responses over the tokens of the second, once for
each of them. CPU time is the kernel's (utime and stime), which other programs hardly change. Writes a JSON file.
Exit status: 0 done, 1 an error, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.arms import Prompt, ServedArm
from bench.measured import spread
from bench.quiet import CpuTime
from bench.results import write_results
from bench.simulated_model import READY_S, write_model
from bench.turns import running
from build_engine.arguments import Parser
from inflight_tools.clients.grpc import Connection
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import Failure, Progress, run_main
from inflight_tools.load.perf_analyzer import find_perf_analyzer
from inflight_tools.load.profile_export import Request
from inflight_tools.load.prompts import prompts
from inflight_tools.load.stats import Run, summarize
from inflight_tools.server.find import Triton, find_triton
from inflight_tools.server.server import Server, ServerConfig

RESULTS = REPOSITORY / "docs" / "benchmarks" / "delivery_cost.json"
PROMPT_WORDS = 32
_NS_PER_MS = 1e6
_EVERYTHING_BUT = "engine"


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of one checkout. CPU is µs per token, `cores` those of backend and server; times are ms."""

    repeat: int
    source: str
    tokens: int
    tokens_per_s: float
    tokens_per_response: float
    cpu_us_per_token: dict[str, float]
    cpu_us_but_engine: float
    cores: float
    itl_p50: float
    itl_p99: float
    gap_p50: float
    gap_p99: float
    ttft_p50: float
    slowest: float  # the least tokens/s of a stream over the median's
    others: float  # the share of the machine that other programs used


def source(text: str) -> tuple[str, Path]:
    """NAME=DIR, a checkout."""
    name, _, folder = text.partition("=")
    path = Path(folder).absolute() / "python_backend"
    if not name or not folder or not (path / "model.py").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR with a checkout of Inflight in DIR")
    return name, path


def setting(text: str) -> tuple[str, str, str]:
    """NAME:PARAMETER=VALUE."""
    name, _, rest = text.partition(":")
    parameter, equals, value = rest.partition("=")
    if not (name and parameter and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:PARAMETER=VALUE")
    return name, parameter, value


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Our options."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    here = [("here", REPOSITORY / "python_backend")]
    option("--src", type=source, action="append", metavar="NAME=DIR", help="a checkout (default: this one; repeat it)")
    option("--gather", action="append", default=[], metavar="NAME", help="a checkout that is served with --gather")
    option("--set", type=setting, action="append", default=[], metavar="NAME:P=V", help="a checkout's model parameter")
    option("--streams", type=types.count, default=32, metavar="N", help="requests in flight (default: %(default)s)")
    option("--waves", type=types.at_least(2), default=5, metavar="N", help="requests per stream (default: %(default)s)")
    option("--tokens", type=types.at_least(2), default=64, metavar="N", help="of an answer (default: %(default)s)")
    option("--repeats", type=types.count, default=3, metavar="N", help="default: %(default)s")
    option("--real", action="store_true", help="the engine directory's own engine")
    option(
        "--step-ms",
        type=types.not_negative,
        default=7.2,
        metavar="MS",
        help="of the simulated engine (default: %(default)s)",
    )
    option(
        "--sequence-ms",
        type=types.not_negative,
        default=0.7,
        metavar="MS",
        help="a step's per sequence (default: %(default)s)",
    )
    option(
        "--prefill-us",
        type=types.not_negative,
        default=200.0,
        metavar="US",
        help="of a prompt's token (default: %(default)s)",
    )
    option("--argument", action="append", default=[], metavar="X", help="a further argument of tritonserver")
    option(
        "--engine",
        type=types.engine,
        default=str(ENGINE),
        metavar="DIR",
        help="with tokenizer.json (default: the served one)",
    )
    option(
        "--output",
        type=types.output_file,
        default=RESULTS,
        help="JSON file (default: docs/benchmarks/delivery_cost.json)",
    )
    options = parser.parse_args(arguments)
    options.src = options.src or here
    unknown = {*options.gather, *(name for name, _, _ in options.set)} - {name for name, _ in options.src}
    if unknown:
        parser.error(f"there is no checkout {unknown.pop()!r} among those of --src")
    return options


@contextmanager
def backends_of(triton: Triton, backend: Path) -> Iterator[Triton]:
    """The same server with another checkout's backend."""
    with tempfile.TemporaryDirectory(prefix="inflight-backends-") as name:
        for entry in triton.backend_directory.iterdir():
            if entry.name != "inflight" and entry.is_dir():
                (Path(name) / entry.name).symlink_to(entry.resolve())
        (Path(name) / "inflight").symlink_to(backend)
        yield replace(triton, backend_directory=Path(name))


@contextmanager
def arm(name: str, backend: Path, options: argparse.Namespace) -> Iterator[ServedArm]:
    """A paused server of one checkout."""
    simulated = {
        "step_ms": options.step_ms,
        "decode_us_per_sequence": 1000 * options.sequence_ms,
        "prefill_us_per_token": options.prefill_us,
        "max_running": options.streams,
    }
    parameters = {"max_queue_size": str(2 * options.streams)}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inflight-bench-")))
        given = {} if options.real else parameters
        given |= {parameter: value for which, parameter, value in options.set if which == name}
        write_model(folder, options.engine, None if options.real else simulated, given)
        triton = stack.enter_context(backends_of(find_triton(), backend))
        config = ServerConfig(repository=folder, arguments=tuple(options.argument), gather=name in options.gather)
        server = stack.enter_context(Server(config, triton))
        server.wait_ready(READY_S)
        connection = stack.enter_context(Connection(server.grpc_url))
        served = ServedArm(server, connection, find_perf_analyzer(), "llm")
        served.name = name
        stack.callback(served.resume)  # a stopped process does not end in order
        served.pause()
        yield served


def take(repeat: int, served: ServedArm, texts: Sequence[Prompt], options: argparse.Namespace) -> Turn:
    """One run of one checkout."""
    with running(served, texts[0]):
        before = CpuTime.now()
        measured = served.run(texts[1:], options.streams, options.tokens)
        others = CpuTime.now().share_of_others(before, sum(measured.cpu_s.values()))
    if measured.tokens != (len(texts) - 1) * options.tokens:
        raise Failure(f"{served.name} gave {measured.tokens} tokens instead of {(len(texts) - 1) * options.tokens}.")
    per_token = {part: 1e6 * seconds / measured.tokens for part, seconds in measured.cpu_s.items()}
    but_engine = sum(each for part, each in per_token.items() if part != _EVERYTHING_BUT)
    return Turn(
        repeat,
        served.name,
        measured.tokens,
        measured.tokens_per_s,
        measured.tokens / sum(len(request.arrivals) for request in measured.requests),
        per_token,
        but_engine,
        (per_token["server"] + per_token["stub"]) * measured.tokens_per_s / 1e6,
        *evenness(measured.requests, options.streams),
        others,
    )


def evenness(requests: Sequence[Request], streams: int) -> tuple[float, float, float, float, float, float]:
    """Times between tokens (p50, p99), between responses (p50, p99), to the first token (p50); the slowest stream."""
    level = summarize(str(streams), streams, [Run(requests, 0)], streams)
    gaps = sorted(
        (at - before) / _NS_PER_MS for request in requests for (before, _), (at, _) in pairwise(request.arrivals)
    )
    speeds = [request.tokens / request.latency for request in requests]
    p50, p99 = (gaps[int(share * (len(gaps) - 1))] if gaps else 0.0 for share in (0.5, 0.99))
    return level.itl.p50, level.itl.p99, p50, p99, level.ttft.p50, min(speeds) / statistics.median(speeds)


def line(turn: Turn) -> str:
    """One run for a person."""
    parts = " + ".join(f"{part} {turn.cpu_us_per_token[part]:.0f}" for part in ("stub", "server", "client"))
    return (
        f"{turn.source}: {turn.tokens_per_s:,.0f} tokens/s, {turn.tokens_per_response:.2f} tokens per response, CPU "
        f"{parts} = {turn.cpu_us_but_engine:.0f} µs a token, {turn.cores:.2f} cores, between tokens p50 "
        f"{turn.itl_p50:.0f} p99 {turn.itl_p99:.0f} ms, between responses p50 {turn.gap_p50:.0f} p99 "
        f"{turn.gap_p99:.0f} ms, TTFT p50 {turn.ttft_p50:.0f} ms, slowest {turn.slowest:.2f}, "
        f"others {100 * turn.others:.0f} %"
    )


def summary(turns: Sequence[Turn]) -> dict[str, Any]:
    """Medians and spread of each checkout, and its ratios to the first one in the same repeat."""
    names = list(dict.fromkeys(turn.source for turn in turns))
    of = {(turn.source, turn.repeat): turn for turn in turns}
    repeats = sorted({turn.repeat for turn in turns})
    made: dict[str, Any] = {}
    for name in names:
        mine, first = [of[name, each] for each in repeats], [of[names[0], each] for each in repeats]
        fields = ("tokens_per_s", "tokens_per_response", "cpu_us_but_engine", "cores", "itl_p99", "gap_p99", "slowest")
        made[name] = {field: spread([getattr(turn, field) for turn in mine]) for field in fields}
        pairs = list(zip(mine, first, strict=True))
        for field in ("tokens_per_s", "cpu_us_but_engine", "itl_p99"):
            ratios = [getattr(one, field) / max(getattr(other, field), 1e-9) for one, other in pairs]
            made[name][f"{field} over {names[0]}"] = spread(ratios, 3)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Take turns, print, write."""
    options = parse(arguments)
    progress = Progress()
    turns: list[Turn] = []
    with ExitStack() as stack:
        arms = [stack.enter_context(arm(name, backend, options)) for name, backend in options.src]
        texts = (Prompt(text, []) for text in prompts("delivery cost", PROMPT_WORDS))
        with contextlib.closing(progress) if hasattr(progress, "close") else contextlib.nullcontext():
            for repeat in range(options.repeats):
                for served in arms if repeat % 2 else arms[::-1]:
                    progress.show(f"repeat {repeat}, {served.name}")
                    some = list(islice(texts, options.streams * options.waves + 1))
                    turns.append(take(repeat, served, some, options))
                    progress.clear()
                    print(line(turns[-1]), flush=True)
    options.src = [name for name, _ in options.src]  # their folders are of this machine only
    write_results(
        options.output,
        "CPU time per token of everything but the engine, and times between tokens",
        "python scripts/bench/delivery_cost.py",
        options,
        summary=summary(turns),
        turns=[asdict(turn) for turn in turns],
    )
    return 0


if __name__ == "__main__":
    run_main(main)
