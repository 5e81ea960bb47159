#!/usr/bin/env python3
"""Measures what a shared prefix saves: time to first token of a prompt, and of another one that begins like it.

Through Triton and gRPC. Every repeat has a prefix of its own; the second prompt ends otherwise than the first. Exit
status: 0 done, 1 an error.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.measured import spread, watched
from bench.peer_client import Question
from bench.peer_inflight import InflightPeer
from bench.peers import questions
from bench.results import write_results
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import run_main
from inflight_tools.load.lengths import parse_lengths
from inflight_tools.load.perf_analyzer import Load

ONE = Load(concurrency=1)
ANSWER = 8  # tokens; the engine keeps back the only token of an answer with one until its next step


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option("--engine", type=types.openvino_engine, default=str(ENGINE), metavar="DIR", help="engine directory")
    option("--prefix-tokens", type=types.count, default=1000, metavar="N", help="default: %(default)s")
    option(
        "--tail-tokens",
        type=types.count,
        default=16,
        metavar="N",
        help="of each prompt after it (default: %(default)s)",
    )
    option("--repeats", type=types.count, default=9, metavar="N", help="default: %(default)s")
    option("--output", type=types.output_file, default=REPOSITORY / "docs" / "benchmarks" / "prefix.json")
    options = parser.parse_args(arguments)
    peer = InflightPeer("prefix", "int8", options.engine)
    peer.start()
    try:
        prefixes = questions(options.engine, parse_lengths(str(options.prefix_tokens), 0), ANSWER, 1)
        tails = questions(options.engine, parse_lengths(str(options.tail_tokens), 0), ANSWER, 2)
        firsts, seconds = [], []
        peer.drive(list(itertools.islice(tails, 4)), ONE, "warm")
        with watched(peer.cpu_s) as others:
            for _ in range(options.repeats):
                prefix = next(prefixes).text
                asked = [Question(f"{prefix} {next(tails).text}", ANSWER) for _ in range(2)]
                first, second = peer.drive(asked, ONE, "prefix")
                firsts.append((first.ttft or 0) / 1e6)
                seconds.append((second.ttft or 0) / 1e6)
    finally:
        peer.stop()
    ratios = [second / first for first, second in zip(firsts, seconds, strict=True)]
    content = {
        "first_ttft_ms": spread(firsts),
        "second_ttft_ms": spread(seconds),
        "second_over_first": spread(ratios, 4),
        "cpu_share_of_others": others.share,
    }
    what = "time to first token with and without a prefix in the cache"
    write_results(options.output, what, "python scripts/bench/prefix.py", options, **content)
    print(f"first {content['first_ttft_ms']}\nsecond {content['second_ttft_ms']}\nratio {content['second_over_first']}")
    return 0


if __name__ == "__main__":
    run_main(main)
