#!/usr/bin/env python3
"""A regression guard: the six ratios that matter, against committed bounds that know their noise.

Ratios, because a machine's speed is in both sides. By hand, or in the full tier of the tests; never in CI. What was
measured while other programs used the machine is measured once more, and then not judged. `--learn` adds a run to
those that the bounds of this kind of processor are made of: a tenth beside their median, or twice what they spread.

Exit status: 0 all hold; 1 one got worse, or an error (one sentence); 2 the machine was too disturbed to say, or the
options are wrong; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench import guard_bounds as bounds
from bench.guard_bounds import Measured
from bench.guard_ratios import SOURCES, Source, measure
from bench.quiet import wait_until_quiet
from bench.results import processor_key, write_results
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import Failure, Progress, run_main

BOUNDS = REPOSITORY / "docs" / "benchmarks" / "guard.json"
NAMES = tuple(source.name for source in SOURCES)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Our options."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option("--engine", type=types.openvino_engine, default=str(ENGINE), metavar="DIR", help="engine directory")
    option("--only", type=types.names(NAMES), default=",".join(NAMES), metavar="A,B", help="default: %(default)s")
    option("--repeats", type=types.count, default=3, metavar="N", help="of every ratio (default: %(default)s)")
    option("--quiet", type=types.share, default=0.1, metavar="X", help="what others may use (default: %(default)s)")
    option("--patience", type=types.not_negative, default=20.0, metavar="S", help="for a quiet moment (default: 20)")
    option("--learn", action="store_true", help="measure once, and add it to the runs that the bounds are made of")
    option("--bounds", type=types.output_file, default=BOUNDS, help="default: docs/benchmarks/guard.json")
    return parser.parse_args(arguments)


def quietly(source: Source, options: argparse.Namespace, progress: Progress) -> dict[str, Measured]:
    """Measured once, and once more where it was disturbed: the quieter of both."""
    wait_until_quiet(options.quiet, options.patience)
    found = measure(source, options.engine, options.repeats, progress)
    if max(each.others for each in found.values()) > options.quiet:
        progress.show(f"{source.name}: others used the machine, once more")
        wait_until_quiet(options.quiet, options.patience)
        again = measure(source, options.engine, options.repeats, progress)
        found = min(found, again, key=lambda each: max(one.others for one in each.values()))
    return found


def run(options: argparse.Namespace) -> dict[str, Measured]:
    """Every ratio."""
    progress = Progress()
    found: dict[str, Measured] = {}
    try:
        for source in SOURCES:
            if source.name in options.only:
                found |= quietly(source, options, progress)
    finally:
        progress.clear()
    return found


def learn(options: argparse.Namespace) -> int:
    """One more run for the bounds. Raises `Failure` when the machine was not quiet enough for that."""
    better = {name: way for source in SOURCES for name, way in source.ratios.items()}
    earlier = bounds.runs_of(options.bounds) if options.bounds.exists() else {}
    found = run(options)
    print(", ".join(f"{name}: {each.median:.3g} ({each.others:.0%})" for name, each in found.items()), flush=True)
    disturbed = next((name for name, each in found.items() if each.others > options.quiet), None)
    if disturbed is not None:
        raise Failure(f"others used the machine while {disturbed!r} was measured: nothing is written.")
    content = bounds.with_run(earlier, processor_key(), found, better)
    what = "the six ratios of the regression guard: runs, and the bounds that they give"
    write_results(options.bounds, what, "python scripts/bench/guard.py --learn", options, **content)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, compare, say."""
    options = parse(arguments)
    if options.learn:
        return learn(options)
    committed = bounds.read(options.bounds, processor_key())
    wanted = [name for source in SOURCES if source.name in options.only for name in source.ratios]
    missing = next((name for name in wanted if name not in committed), None)
    if missing is not None:
        raise Failure(
            f"--bounds: {options.bounds} knows nothing of {missing!r} on this processor ({processor_key()}): measure "
            "it with --learn."
        )
    found = run(options)
    print(bounds.table(found, committed, options.quiet))
    return bounds.status([bounds.verdict(each, committed[name], options.quiet) for name, each in found.items()])


if __name__ == "__main__":
    run_main(main)
