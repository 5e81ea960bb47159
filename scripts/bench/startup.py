#!/usr/bin/env python3
"""Measures the start: from the command `tritonserver` to ready with a built engine, and to the first answer.

In turns: as the shipped config.pbtxt is served; the same without Triton's auto-completion of it, for which Triton
starts the backend once more and sleeps a second; and the bare engine, a Python process that loads the same pipeline
with the same settings and answers the same tokens. A start of each before the series reads the files.

Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.arms import BareArm, BareWorker, Prompt
from bench.measured import spread, watched_tree
from bench.peer_client import Question, TritonTransport, drive
from bench.results import write_results
from build_engine.arguments import Parser
from inflight.engines.spec import WorkerSpec
from inflight.request.tokenizer import TextTokenizer
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, MODEL_REPOSITORY, REPOSITORY
from inflight_tools.common.report import run_main
from inflight_tools.load.perf_analyzer import Load
from inflight_tools.server.server import Server, ServerConfig

QUESTION = "How are you?"
BARE = "bare"
POLL_S = 0.02


def served(engine: Path, arguments: Sequence[str]) -> tuple[float, float]:
    """Seconds from `tritonserver` (with these further arguments) to ready, and to the first token."""
    with tempfile.TemporaryDirectory(prefix="inflight-bench-") as name:
        version = Path(name) / "llm" / "1"
        version.mkdir(parents=True)
        (version / "engine").symlink_to(engine.resolve())
        shutil.copy(MODEL_REPOSITORY / "llm" / "config.pbtxt", version.parent)  # it lists every input and output
        began = time.perf_counter()
        with Server(ServerConfig(repository=Path(name), arguments=tuple(arguments))) as server:
            while not server.is_ready() and not server.has_ended():
                time.sleep(POLL_S)
            server.wait_ready()  # says why, where it has ended
            ready = time.perf_counter() - began
            transport = TritonTransport(server.grpc_url, "llm")
            (request,) = drive(transport, [Question(QUESTION, 1)], Load(concurrency=1), "first")
            return ready, request.arrivals[0][0] / 1e9 - began


def bare_engine(engine: Path) -> tuple[float, float]:
    """The same of a process with nothing but the pipeline: loaded, and the first token."""
    ids = TextTokenizer(engine).encode(QUESTION, add_special_tokens=True)
    began = time.perf_counter()
    with BareWorker(asdict(WorkerSpec("openvino", str(engine.resolve()), {}, 0))) as worker:
        loaded = time.perf_counter() - began
        (request,) = BareArm(worker).run([Prompt(QUESTION, ids)], 1, 1).requests
        return loaded, request.arrivals[0][0] / 1e9 - began


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option("--engine", type=types.openvino_engine, default=str(ENGINE), metavar="DIR", help="engine directory")
    option("--repeats", type=types.count, default=5, metavar="N", help="default: %(default)s")
    option("--output", type=types.output_file, default=REPOSITORY / "docs" / "benchmarks" / "startup.json")
    options = parser.parse_args(arguments)
    arms: dict[str, Callable[[], tuple[float, float]]] = {
        "served": lambda: served(options.engine, ()),
        "config as it is": lambda: served(options.engine, ("--disable-auto-complete-config",)),
        BARE: lambda: bare_engine(options.engine),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    with watched_tree() as others:
        for repeat in range(-1, options.repeats):  # the first turn only reads the files
            for name, measure in arms.items():
                seconds = measure()
                if repeat >= 0:
                    found[name].append(seconds)
    content: dict[str, Any] = {"cpu_share_of_others": others.share}
    for name, several in found.items():
        ratios = [each[1] / bare[1] for each, bare in zip(several, found[BARE], strict=True)]
        content[name] = {
            "ready_s": spread([each[0] for each in several]),
            "first_token_s": spread([each[1] for each in several]),
            "first_token_over_bare": spread(ratios),
        }
    what = "seconds from `tritonserver` to ready, and to the first token"
    write_results(options.output, what, "python scripts/bench/startup.py", options, **content)
    for name, each in content.items():
        print(f"{name}: {each}")
    return 0


if __name__ == "__main__":
    run_main(main)
