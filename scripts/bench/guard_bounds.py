"""What a ratio may be and what is said of it: bounds out of several runs' noise, and verdicts. Pure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from inflight_tools.common.report import Failure

LEAST_MARGIN = 0.1  # of the median: less than that is no regression that anybody would notice
NOISE_MARGIN = 2.0  # times the largest distance of a run from the median
FORMAT = 2


class Better(Enum):
    """Which way a ratio is good."""

    HIGHER = "at least"
    LOWER = "at most"


class Verdict(Enum):
    """What one measurement says."""

    HELD = "held"
    REGRESSION = "REGRESSION"
    DISTURBED = "too disturbed to say"


@dataclass(frozen=True, slots=True)
class Bound:
    """What a ratio may be, and the medians of the runs that it was made of."""

    better: Better
    runs: list[float]

    @property
    def median(self) -> float:
        """Of the runs."""
        return statistics.median(self.runs)

    @property
    def limit(self) -> float:
        """The median, less (or more than) a tenth of it, or twice what the runs spread, whichever is more."""
        away = max(abs(run - self.median) for run in self.runs)
        margin = max(LEAST_MARGIN * self.median, NOISE_MARGIN * away)
        return self.median - margin if self.better is Better.HIGHER else self.median + margin

    def holds(self, value: float) -> bool:
        """Whether a ratio is no worse than that."""
        return value >= self.limit if self.better is Better.HIGHER else value <= self.limit


@dataclass(frozen=True, slots=True)
class Measured:
    """A ratio as it came: one value for each repeat, and what other programs used of the machine (0 … 1) meanwhile."""

    values: list[float]
    others: float

    @property
    def median(self) -> float:
        """Of the repeats."""
        return statistics.median(self.values)


def verdict(measured: Measured, bound: Bound, quiet: float) -> Verdict:
    """A machine that others use more than `quiet` (0 … 1) of proves nothing, neither well nor ill."""
    if measured.others > quiet:
        return Verdict.DISTURBED
    return Verdict.HELD if bound.holds(measured.median) else Verdict.REGRESSION


def status(verdicts: Sequence[Verdict]) -> int:
    """The exit status: 1 when anything got worse, else 2 when anything could not be told, else 0."""
    if Verdict.REGRESSION in verdicts:
        return 1
    return 2 if Verdict.DISTURBED in verdicts else 0


Runs = dict[str, dict[str, Any]]
"""By the processor (`results.processor_key`) and the ratio's name: what `with_run` has written."""


def runs_of(file: Path) -> Runs:
    """What a file holds. Raises `Failure`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found: Runs = content["processors"]
        for ratios in found.values():
            for each in ratios.values():
                Bound(Better(each["better"]), [float(run) for run in each["runs"]]).limit  # noqa: B018
        if content["format"] != FORMAT:
            raise ValueError(content["format"])
    except OSError as error:
        raise Failure(f"--bounds: {file} cannot be read ({error.strerror}): make it with --learn.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Failure(f"--bounds: {file} has no bounds of this script: make it with --learn.") from None
    return found


def read(file: Path, processor: str) -> dict[str, Bound]:
    """The committed bounds of this processor by the ratio's name; none where nobody has measured on one. Raises
    `Failure`.
    """
    found = runs_of(file).get(processor, {})
    return {name: Bound(Better(each["better"]), list(each["runs"])) for name, each in found.items()}


def with_run(
    earlier: Runs, processor: str, run: Mapping[str, Measured], better: Mapping[str, Better]
) -> dict[str, Any]:
    """What `runs_of` reads: earlier runs and one more, with every single figure and the bounds that they give."""
    ratios = dict(earlier.get(processor, {}))
    for name, each in run.items():
        before = ratios.get(name, {})
        bound = Bound(better[name], [*before.get("runs", []), round(each.median, 4)])
        ratios[name] = {
            "better": bound.better.value,
            "limit": round(bound.limit, 4),
            "median": round(bound.median, 4),
            "runs": bound.runs,
            "values": [*before.get("values", []), [round(value, 4) for value in each.values]],
            "cpu_share_of_others": [*before.get("cpu_share_of_others", []), round(each.others, 4)],
        }
    return {"format": FORMAT, "processors": {**earlier, processor: ratios}}


def table(measured: Mapping[str, Measured], bounds: Mapping[str, Bound], quiet: float) -> str:
    """A line for each ratio."""
    lines = ["| ratio | measured (least–most) | bound | usual (least–most) | others used | verdict |"]
    lines.append("|---|---|---|---|---|---|")
    for name, each in measured.items():
        bound = bounds[name]
        lines.append(
            f"| {name} | {each.median:.3g} ({min(each.values):.3g}–{max(each.values):.3g}) "
            f"| {bound.better.value} {bound.limit:.3g} "
            f"| {bound.median:.3g} ({min(bound.runs):.3g}–{max(bound.runs):.3g}) "
            f"| {each.others:.0%} | {verdict(each, bound, quiet).value} |"
        )
    return "\n".join(lines)
