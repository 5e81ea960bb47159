#!/usr/bin/env python3
"""Measures the start: from the command `tritonserver` to ready with a built engine, and to the first answer.

The first start of a series finds the files in the page cache like the others do, if they were read before. Exit status:
0 done, 1 an error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.measured import spread
from bench.peer_client import Question
from bench.peer_inflight import InflightPeer
from bench.results import write_results
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import run_main
from inflight_tools.load.perf_analyzer import Load


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option("--engine", type=types.openvino_engine, default=str(ENGINE), metavar="DIR", help="engine directory")
    option("--repeats", type=types.count, default=5, metavar="N", help="default: %(default)s")
    option("--output", type=types.output_file, default=REPOSITORY / "docs" / "benchmarks" / "startup.json")
    options = parser.parse_args(arguments)
    ready, answered = [], []
    for _ in range(options.repeats):
        peer = InflightPeer("startup", "int8", options.engine)
        began = time.monotonic()
        peer.start()
        try:
            ready.append(time.monotonic() - began)
            peer.drive([Question("How are you?", 1)], Load(concurrency=1), "first")
            answered.append(time.monotonic() - began)
        finally:
            peer.stop()
    content = {"ready_s": spread(ready), "first_token_s": spread(answered)}
    what = "seconds from `tritonserver` to ready, and to the first token"
    write_results(options.output, what, "python scripts/bench/startup.py", options, **content)
    print(f"ready {content['ready_s']}\nfirst token {content['first_token_s']}")
    return 0


if __name__ == "__main__":
    run_main(main)
