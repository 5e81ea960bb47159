#!/usr/bin/env python3
"""Measures how long a guided request stalls the other streams: the engine compiles its grammar inside a step.

Plain streams run on the real engine, in this process; every few steps one guided request joins them. Printed per guide:
the time of a step without any of this, the longest step after a guide came for the first time, and when it came again;
medians over the repeats. Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.quiet import wait_until_quiet
from build_engine.arguments import Parser
from inflight.engines.base import EngineRequest, Guide, SamplingParams
from inflight.engines.openvino.engine import OpenVinoEngine
from inflight.grammar.prepare import prepare
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE
from inflight_tools.common.report import run_main

STEPS_BEFORE = 12  # between two guided requests
STEPS_AFTER = 4  # in which a guide is compiled: prefill, and the first token
PROMPT = 24
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 5},
    },
    "required": ["name", "age", "email", "tags"],
}


def guides(number: int) -> dict[str, tuple[str, str]]:
    """Guides by name, new ones for every number."""
    person = {**PERSON, "properties": {**PERSON["properties"], f"x{number}": {"type": "null"}}}  # type: ignore[dict-item]
    long = {"type": "object", "properties": {f"p{number}": {"type": "string", "maxLength": 60}}}
    fields = {"type": "object", "properties": {f"f{number}_{place}": {"type": "string"} for place in range(30)}}
    return {
        "regex [0-9]{3}-[0-9]{4}": ("regex", f"[0-9]{{3}}-[0-9]{{4}}-{number}"),
        "choice of 100": ("choice", json.dumps([f"choice {place} {number}" for place in range(100)])),
        "schema, 4 properties": ("json_schema", json.dumps(person)),
        "schema, 30 strings": ("json_schema", json.dumps(fields)),
        "schema, maxLength 60": ("json_schema", json.dumps(long)),
        "regex .{0,60}": ("regex", f"x{number}.{{0,60}}"),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--engine", type=types.openvino_engine, default=str(ENGINE), metavar="DIR", help="engine directory"
    )
    parser.add_argument(
        "--streams", type=types.count, default=8, metavar="N", help="plain streams (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=types.count, default=5, metavar="N", help="per guide (default: %(default)s)")
    parser.add_argument(
        "--patience",
        type=types.not_negative,
        default=60.0,
        metavar="S",
        help="longest wait for a quiet machine (default: 60)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args(arguments)
    quiet = wait_until_quiet(0.1, options.patience)
    measured = Measurement(OpenVinoEngine(options.engine, {}, options.streams + 2), options.streams)
    rows = {name: measured.guide(name, options.repeats) for name in guides(0)}
    report = {"quiet": quiet, "streams": options.streams, "plain_step_ms": measured.plain_ms(), "guides": rows}
    if options.json:
        print(json.dumps(report, indent=1))
        return 0
    if not quiet:
        print("other programs used this machine: the figures are too high")
    print(f"{options.streams} plain streams, {report['plain_step_ms']:.0f} ms a step without a guide")
    print(f"{'guide':28}{'first time':>14}{'again':>10}   (ms of the longest step)")
    for name, row in rows.items():
        print(f"{name:28}{row['first_ms']:14.0f}{row['again_ms']:10.0f}")
    return 0


class Measurement:
    """An engine with plain streams that never end."""

    def __init__(self, engine: OpenVinoEngine, streams: int) -> None:
        self._engine = engine
        self._ids = iter(range(1, 10**9))
        self._plain: list[float] = []
        self._running: set[int] = set()
        self._streams = streams
        for _ in range(STEPS_BEFORE):
            self._step()

    def guide(self, name: str, repeats: int) -> dict[str, float]:
        """Medians of the longest step after a new guide, and after the same one again."""
        first, again = [], []
        for number in range(1, repeats + 1):
            kind, text = guides(number * 1000 + len(name))[name]
            guide = Guide("ebnf_grammar", prepare(kind, text))
            first.append(self._joined_by(guide))
            again.append(self._joined_by(guide))
        return {"first_ms": round(statistics.median(first), 1), "again_ms": round(statistics.median(again), 1)}

    def plain_ms(self) -> float:
        """Median step without a guide."""
        return round(statistics.median(self._plain), 1)

    def _joined_by(self, guide: Guide) -> float:
        for _ in range(STEPS_BEFORE):
            self._plain.append(self._step())
        number = next(self._ids)
        sampling = SamplingParams(max_tokens=STEPS_AFTER, stop_token_ids=self._engine.info.stop_token_ids)
        ids = [1000 + (number + place) % 20_000 for place in range(PROMPT)]
        self._engine.add(EngineRequest(request_id=number, token_ids=ids, sampling=sampling, guide=guide))
        self._running.add(number)
        longest = 0.0
        while number in self._running:
            longest = max(longest, self._step())
        return longest

    def _step(self) -> float:
        while len(self._running) < self._streams:
            self._start_plain()
        began = time.perf_counter()
        outputs = self._engine.step(0.0)
        took = (time.perf_counter() - began) * 1000
        self._running -= {output.request_id for output in outputs if output.finish is not None}
        return took

    def _start_plain(self) -> None:
        number = next(self._ids)
        ids = [1000 + (number * 7 + place * 13) % 20_000 for place in range(PROMPT)]
        self._engine.add(EngineRequest(request_id=number, token_ids=ids, sampling=SamplingParams(max_tokens=4_000)))
        self._running.add(number)


if __name__ == "__main__":
    run_main(main)
