#!/usr/bin/env python3
"""What large pages are worth: steps of one engine in three processes in turns, two plain ones and one with them.

The plain ones differ in nothing; what lies between them is how much a process's luck weighs. Where the kernel gives
large pages to everybody (`always`), or to nobody, there is no difference to see. Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.measured import spread
from bench.results import write_results
from bench.steps import MOST_IN_FLIGHT, Engine
from build_engine.arguments import Parser
from inflight.engines.openvino.pages import VARIABLE, large_pages
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import Failure, Progress, run_main
from inflight_tools.server.children import start_child

SIDES = ("plain", "plain again", "large pages")
_PROMPT, _ANSWER, _STEPS = 32, 400, 6
_ANSWER_S = 600.0  # loading, or prompts and steps
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class Side:
    """A process with the engine, which computes steps when it is asked for them."""

    def __init__(self, engine: Path, batch: int, environment: Mapping[str, str]) -> None:
        """It is being started; its first answer comes when it has loaded."""
        self.process = start_child(
            lambda bind: subprocess.Popen(
                [sys.executable, __file__, "--steps-of", str(engine), "--batches", str(batch)],
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                preexec_fn=bind,
            )
        )

    def ask(self, steps: int) -> dict[str, float]:
        """Milliseconds of a step, and MiB of its memory, of which in large pages. Raises `Failure` when it ended."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the process has no pipes")
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], _ANSWER_S)[0]:
            raise Failure(f"an engine's process gave no answer within {_ANSWER_S:.0f} s.")
        line = self.process.stdout.readline()
        if not line:
            raise Failure("an engine's process ended; what it said is above.")
        answer: dict[str, float] = json.loads(line)
        return answer

    def stop(self) -> None:
        """At once."""
        self.process.kill()
        self.process.wait()


def memory() -> dict[str, float]:
    """MiB of this process: all that is not a file's, and of it what lies in large pages."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    found = dict(re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE))
    return {"MiB": int(found["Anonymous"]) / 1024, "MiB in large pages": int(found["AnonHugePages"]) / 1024}


def answer_steps(folder: Path, batch: int) -> None:
    """The side's own program: steps of so many requests for each number on standard input."""
    engine, left = Engine(folder, "u8"), 0
    for line in sys.stdin:
        steps = int(line)
        if left < steps:
            while engine.pipeline.has_non_finished_requests():
                engine.pipeline.step()
            # Who drops a handle drops its request.
            _handles = [
                engine.send([7 * i + 13 * each + 100 for i in range(_PROMPT)], _ANSWER) for each in range(batch)
            ]
            for _ in range(4):  # their prompts, and what is done but once
                engine.pipeline.step()
            left = _ANSWER - 8
        began = time.perf_counter()
        for _ in range(steps):
            engine.pipeline.step()
        took = (time.perf_counter() - began) / steps
        left -= steps
        print(json.dumps({"ms": 1000 * took, **memory()}), flush=True)


def measure(engine: Path, batch: int, turns: int, progress: Progress) -> dict[str, Any]:
    """Medians and spread of a step, and of its ratio to the first plain process's in the same turn."""
    plain = {name: value for name, value in os.environ.items() if name != VARIABLE}
    with contextlib.ExitStack() as undo:
        sides = {}
        for name in SIDES:
            sides[name] = Side(engine, batch, {**plain, **large_pages({})} if name == SIDES[-1] else plain)
            undo.callback(sides[name].stop)
        took: dict[str, list[float]] = {name: [] for name in SIDES}
        last = {}
        for turn in range(-1, turns):
            progress.show(f"batch {batch}, turn {turn + 1} of {turns}")
            for name in SIDES if turn % 2 else SIDES[::-1]:
                last[name] = sides[name].ask(_STEPS)
                if turn >= 0:
                    took[name].append(last[name]["ms"])
    return {name: _side(last[name], took[name], took[SIDES[0]]) for name in SIDES}


def _side(last: Mapping[str, float], took: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    ratios = [own / other for own, other in zip(took, base, strict=True)]
    quarter = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    sizes = {name: round(value) for name, value in last.items() if name != "ms"}
    return {
        "ms": spread(took, 2),
        "ratio": spread(ratios, 3),
        "middle half": [round(quarter[0], 3), round(quarter[2], 3)],
    } | sizes


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option("--engine", type=types.openvino_engine, default=str(ENGINE), metavar="DIR", help="default: the quickstart's")
    option("--batches", type=types.counts, default=[1, 16], metavar="N,N", help="requests in a step (default: 1,16)")
    option("--turns", type=types.count, default=40, metavar="N", help=f"of {_STEPS} steps each (default: 40)")
    option("--output", type=types.output_file, default=REPOSITORY / "docs" / "benchmarks" / "pages.json")
    option("--steps-of", type=types.openvino_engine, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if max(options.batches) > MOST_IN_FLIGHT:
        parser.error(f"--batches goes up to {MOST_IN_FLIGHT}")
    if options.steps_of is not None:
        answer_steps(options.steps_of, options.batches[0])
        return 0
    progress = Progress()
    found = {f"batch {batch}": measure(options.engine, batch, options.turns, progress) for batch in options.batches}
    progress.clear()
    for batch, sides in found.items():
        for name, side in sides.items():
            print(f"{batch}, {name}: {side['ms']['median']} ms, {side['ratio']['median']} {side['middle half']}")
    setting = SETTING.read_text(encoding="ascii").strip() if SETTING.exists() else "none"
    del options.steps_of
    what = f"steps of an engine with and without large pages; the kernel's setting: {setting}"
    write_results(options.output, what, "python scripts/bench/pages.py", options, batches=found)
    return 0


if __name__ == "__main__":
    run_main(main)
