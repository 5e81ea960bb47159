#!/usr/bin/env python3
"""How many tokens per second the backend delivers: the simulated engine at full tilt, the real server, perf_analyzer.

Every request streams, has a stop string that never comes, and is detokenized with the engine directory's own
tokenizer; at the end each text is compared with the one that the engine's tokens make. The client runs on the same
cores. Beside it the same backend made to send one response per token (bench/one_per_token.py). Writes the figures and
every run to a JSON file. Exit status: 0 done, 1 an error (a text that differs is one), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.results import write_results
from bench.simulated_model import serving
from build_engine.arguments import Parser
from inflight.engines.base import EngineRequest, SamplingParams
from inflight.engines.simulated.engine import SimulatedEngine
from inflight.request.tokenizer import TextTokenizer
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import Failure, Progress, run_main
from inflight_tools.load.lengths import Lengths
from inflight_tools.load.perf_analyzer import Inputs, Load, find_perf_analyzer, measure
from inflight_tools.load.profile_export import Request
from inflight_tools.load.prompts import prompts
from inflight_tools.load.stats import Objective, Run, summarize_run
from inflight_tools.server.find import find_triton
from inflight_tools.server.server import Server

RESULTS = REPOSITORY / "docs" / "benchmarks" / "delivery.json"
STOP = "\u2603 this never comes \u2603"
PROMPT_WORDS = 16
TIMEOUT_S = 300.0
ARMS = ("merged", "one per token")
_NS_PER_MS = 1e6
_NO_TEXT = "\ufffd"  # what an incomplete character at the end decodes to; the backend leaves it out


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of one arm. Times are milliseconds; `slowest` is the least tokens/s of a stream over the median's."""

    repeat: int
    arm: str
    streams: int
    requests: int
    tokens: int
    tokens_per_s: float
    tokens_per_response: float
    gap_p50: float
    gap_p99: float
    slowest: float
    ttft_p50: float
    different_texts: int


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Our options."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option(
        "--streams",
        type=types.counts,
        default="256,1024",
        metavar="N,N",
        help="requests in flight (default: %(default)s)",
    )
    option("--arms", type=types.names(ARMS), default=",".join(ARMS), help="what to measure (default: %(default)s)")
    option(
        "--tokens", type=types.count, default=2000, metavar="N", help="of an answer, N/2 to 3N/2 (default: %(default)s)"
    )
    option(
        "--waves",
        type=types.at_least(2, "the first request of a stream only warms up"),
        default=3,
        metavar="N",
        help="requests per stream (default: %(default)s)",
    )
    option("--repeats", type=types.count, default=3, metavar="N", help="of every arm, in turns (default: %(default)s)")
    option(
        "--engine",
        type=types.engine,
        default=str(ENGINE),
        metavar="DIR",
        help="with tokenizer.json (default: the served one)",
    )
    option(
        "--output", type=types.output_file, default=RESULTS, help="JSON file (default: docs/benchmarks/delivery.json)"
    )
    return parser.parse_args(arguments)


def workload(streams: int, waves: int, tokens: int, seed: str) -> list[Inputs]:
    """Requests with prompts of their own, and answers of `tokens` / 2 to `tokens` × 3 / 2 tokens."""
    lengths = Lengths("uniform", max(tokens // 2, 1), tokens + tokens // 2, tokens).draws(seed)
    texts = islice(prompts(seed, PROMPT_WORDS), streams * waves)
    return [
        {
            "text_input": [text],
            "max_tokens": [length],
            "stop_words": [STOP],
            "stream": [True],
            "ignore_eos": [True],
            "return_num_output_tokens": [True],
        }
        for text, length in zip(texts, lengths, strict=False)
    ]


class Expected:
    """The text that the simulated engine's tokens make, request by request, from the engine itself."""

    def __init__(self, engine: Path) -> None:
        self._engine = SimulatedEngine(engine, {"real_time": False, "max_seq_len": 1 << 20, "blocks": 1 << 20}, 1)
        self._tokenizer = TextTokenizer(engine)

    def text(self, inputs: Inputs) -> str:
        """The whole answer to one request."""
        ids = self._tokenizer.encode(str(inputs["text_input"][0]), add_special_tokens=True)
        sampling = SamplingParams(max_tokens=int(inputs["max_tokens"][0]))
        self._engine.add(EngineRequest(request_id=1, token_ids=ids, sampling=sampling))
        answer: list[int] = []
        while True:
            for output in self._engine.step(0.0):
                answer += output.token_ids
                if output.finish is not None:
                    return str(self._tokenizer.library.decode(answer))


@contextmanager
def serving_arm(arm: str, engine: Path, streams: int) -> Iterator[Server]:
    """A server with the simulated engine at full tilt; `arm` says how it sends."""
    triton = find_triton()
    options = {"real_time": False, "max_running": streams, "max_seq_len": 1 << 16, "blocks": 1 << 20}
    with tempfile.TemporaryDirectory(prefix="inflight-delivery-") as name:
        if arm == ARMS[1]:
            triton = replace(triton, backend_directory=_patched(triton.backend_directory, Path(name)))
        with serving(engine, options, {"max_queue_size": str(streams)}, triton) as server:
            yield server


def _patched(backends: Path, folder: Path) -> Path:
    """A backend directory whose backend sends every token alone."""
    (folder / "inflight").mkdir(parents=True)
    for entry in backends.iterdir():
        if entry.name != "inflight" and entry.is_dir():
            (folder / entry.name).symlink_to(entry.resolve())
    for entry in (backends / "inflight").resolve().iterdir():
        if entry.name != "model.py":
            (folder / "inflight" / entry.name).symlink_to(entry)
    source = (backends / "inflight" / "model.py").read_text(encoding="utf-8")
    here = str(Path(__file__).resolve().parent)
    (folder / "inflight" / "model.py").write_text(
        f"{source}\n\nsys.path.append({here!r})\n\n\ndef _one_per_token() -> None:\n    import one_per_token\n\n"
        "    one_per_token.apply()\n\n\n_initialize = TritonPythonModel.initialize\n\n\n"
        "def _patched(self, args):\n    _one_per_token()\n    _initialize(self, args)\n\n\n"
        "TritonPythonModel.initialize = _patched\n",
        encoding="utf-8",
    )
    return folder


def take(repeat: int, arm: str, streams: int, options: argparse.Namespace, say: Progress) -> Turn:
    """One run of one arm on a server of its own."""
    # One response per token is a hundred times slower, and more: shorter answers take as long.
    tokens = options.tokens if arm == ARMS[0] else max(options.tokens // 25, 1)
    inputs = workload(streams, options.waves, tokens, f"delivery {repeat} {arm} {streams}")
    what = f"repeat {repeat}, {streams} streams, {arm}"
    with serving_arm(arm, options.engine, streams) as server:
        requests = measure(
            find_perf_analyzer(),
            server.grpc_url,
            "llm",
            Load(concurrency=streams),
            inputs,
            TIMEOUT_S,
            lambda seconds: say.show(f"{what}: {seconds:.0f} s"),
            keep=("text_output",),
        )
    say.show(f"{what}: comparing texts")
    expected = Expected(options.engine)
    right = sorted(expected.text(each).rstrip(_NO_TEXT) for each in inputs)
    found = sorted("".join(each.outputs["text_output"]).rstrip(_NO_TEXT) for each in requests)
    different = sum(one != other for one, other in zip(right, found, strict=True))
    return summary(repeat, arm, streams, requests, different)


def summary(repeat: int, arm: str, streams: int, requests: Sequence[Request], different: int) -> Turn:
    """The figures of one run."""
    run = summarize_run(Run(requests, streams), streams, Objective())
    measured = requests[streams:]
    gaps = sorted(
        (at - before) / _NS_PER_MS for request in measured for (before, _), (at, _) in pairwise(request.arrivals)
    )
    speeds = [request.tokens / request.latency for request in measured]
    return Turn(
        repeat,
        arm,
        streams,
        len(requests),
        sum(request.tokens for request in requests),
        run.tokens_per_s,
        sum(request.tokens for request in measured) / sum(len(request.arrivals) for request in measured),
        gaps[len(gaps) // 2] if gaps else 0.0,
        gaps[int(0.99 * len(gaps))] if gaps else 0.0,
        min(speeds) / statistics.median(speeds),
        run.ttft_p50,
        different,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Take turns, compare, write."""
    options = parse(arguments)
    progress = Progress()
    turns: list[Turn] = []
    try:
        for repeat in range(options.repeats):
            for streams in options.streams:
                for arm in options.arms:
                    turns.append(take(repeat, arm, streams, options, progress))
                    progress.clear()
                    print(line(turns[-1]), flush=True)
    finally:
        progress.clear()
    write_results(
        options.output,
        "tokens/s through tritonserver and gRPC (perf_analyzer), simulated engine at full tilt",
        "python scripts/bench/delivery.py",
        options,
        turns=[asdict(turn) for turn in turns],
    )
    different = sum(turn.different_texts for turn in turns)
    if different:
        raise Failure(f"{different} texts are not those of the engine's tokens.")
    return 0


def line(turn: Turn) -> str:
    """One run for a person."""
    return (
        f"{turn.streams} streams, {turn.arm}: {turn.tokens_per_s:,.0f} tokens/s, {turn.tokens_per_response:.1f} tokens "
        f"per response, gap p50 {turn.gap_p50:.0f} p99 {turn.gap_p99:.0f} ms, slowest stream {turn.slowest:.2f} of the "
        f"median, TTFT p50 {turn.ttft_p50:.0f} ms, {turn.different_texts} different texts"
    )


if __name__ == "__main__":
    run_main(main)
