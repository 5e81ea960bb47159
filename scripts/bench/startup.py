#!/usr/bin/env python3
"""Measures the start: from the command `tritonserver` to ready with a built engine, and to the first answer.

In turns with the bare engine: a Python process that loads the same pipeline with the same settings and answers the same
tokens. A start of both before the series reads the files. Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.arms import BareArm, BareWorker, Prompt
from bench.measured import spread, watched_tree
from bench.peer_client import Question
from bench.peer_inflight import InflightPeer
from bench.results import write_results
from build_engine.arguments import Parser
from inflight.engines.spec import WorkerSpec
from inflight.request.tokenizer import TextTokenizer
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import run_main
from inflight_tools.load.perf_analyzer import Load

QUESTION = "How are you?"


def served(engine: Path) -> tuple[float, float]:
    """Seconds from `tritonserver` to ready, and to the first token."""
    peer = InflightPeer("startup", "int8", engine)
    began = time.monotonic()
    peer.start()
    try:
        ready = time.monotonic() - began
        peer.drive([Question(QUESTION, 1)], Load(concurrency=1), "first")
        return ready, time.monotonic() - began
    finally:
        peer.stop()


def bare_engine(engine: Path) -> tuple[float, float]:
    """The same of a process with nothing but the pipeline: loaded, and the first token."""
    ids = TextTokenizer(engine).encode(QUESTION, add_special_tokens=True)
    began = time.monotonic()
    with BareWorker(asdict(WorkerSpec("openvino", str(engine.resolve()), {}, 0))) as worker:
        loaded = time.monotonic() - began
        BareArm(worker).run([Prompt(QUESTION, ids)], 1, 1)
        return loaded, time.monotonic() - began


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option("--engine", type=types.openvino_engine, default=str(ENGINE), metavar="DIR", help="engine directory")
    option("--repeats", type=types.count, default=5, metavar="N", help="default: %(default)s")
    option("--output", type=types.output_file, default=REPOSITORY / "docs" / "benchmarks" / "startup.json")
    options = parser.parse_args(arguments)
    ready: list[float] = []
    answered: list[float] = []
    loaded: list[float] = []
    bare: list[float] = []
    with watched_tree() as others:
        for repeat in range(-1, options.repeats):  # the first turn only reads the files
            both = (served(options.engine), bare_engine(options.engine))
            if repeat >= 0:
                for found, seconds in zip((ready, answered, loaded, bare), (*both[0], *both[1]), strict=True):
                    found.append(seconds)
    content = {
        "ready_s": spread(ready),
        "first_token_s": spread(answered),
        "bare_loaded_s": spread(loaded),
        "bare_first_token_s": spread(bare),
        "first_token_over_bare": spread([ours / its for ours, its in zip(answered, bare, strict=True)]),
        "cpu_share_of_others": others.share,
    }
    what = "seconds from `tritonserver` to ready, and to the first token"
    write_results(options.output, what, "python scripts/bench/startup.py", options, **content)
    for name, each in content.items():
        print(f"{name}: {each}")
    return 0


if __name__ == "__main__":
    run_main(main)
