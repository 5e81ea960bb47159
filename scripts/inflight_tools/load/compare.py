"""Two load tests side by side: the ratio of each figure at each level, with a 95 % confidence interval. Pure.

The interval is Welch's, on the logarithms of the runs' values: ratios are what is compared, and their errors multiply.
With a single run on either side there is no interval, and the comparison says so.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inflight_tools.common.report import Failure
from inflight_tools.load.earlier import read_level
from inflight_tools.load.settings import machine_rows, settings_rows
from inflight_tools.load.stats import t975

# (name in a run, what a person reads, whether more is better)
FIGURES = (
    ("tokens_per_s", "tokens/s", True),
    ("requests_per_s", "requests/s", True),
    ("ttft_p50", "TTFT p50", False),
    ("itl_p50", "ITL p50", False),
    ("latency_p50", "latency p50", False),
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """One figure of a test over that of another at one level; `low` to `high` is the 95 % interval, None if unknown."""

    load: str
    figure: str
    more_is_better: bool
    ratio: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """Better, worse, or not told apart."""
        if self.low is None or self.high is None:
            return "one run: no interval"
        if self.low <= 1.0 <= self.high:
            return "not told apart"
        return "better" if (self.low > 1.0) == self.more_is_better else "worse"


def read_levels(path: Path) -> list[dict[str, Any]]:
    """The levels of a results.json. Raises `Failure`."""
    levels: list[dict[str, Any]] = _read(path)["levels"]
    return levels


def read_about(path: Path) -> dict[str, Any]:
    """What a results.json says besides its levels: settings, machine, when. Raises `Failure`."""
    return {name: value for name, value in _read(path).items() if name != "levels"}


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not content["levels"]:
            raise ValueError("it has no level")
        for level in content["levels"]:
            if not isinstance(level["load"], str) or not level["runs"]:
                raise ValueError("a level lacks its load or its runs")
            for run in level["runs"]:
                run["tokens_per_s"]
                _check_figures(run)
            if not any(run["tokens_per_s"] for run in level["runs"]):
                raise ValueError(f"{level['load']} has no token")
            read_level(level)
        settings_rows(content.get("settings") or {})
        machine_rows(content)
    except OSError as error:
        raise Failure(
            f"{path} holds no results of load_test.py ({error.strerror}): name the results.json of another test."
        ) from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise Failure(f"{path} holds no results of load_test.py ({error}): name its results.json.") from None
    return content


def _check_figures(run: Mapping[str, Any]) -> None:
    for name, _, _ in FIGURES:
        value = run.get(name)
        if value is not None and not (isinstance(value, (int, float)) and 0 <= value < math.inf):
            raise ValueError(f"{name} is {value!r}")


def check_levels(loads: Sequence[str], others: Sequence[Mapping[str, Any]]) -> None:
    """Raises `Failure` when two tests will have no level in common, before minutes are spent on one of them."""
    of_others = [level["load"] for level in others]
    if not set(loads) & set(of_others):
        raise Failure(
            f"the test to compare with has {', '.join(of_others)}, not {', '.join(loads)}: measure the same "
            "--concurrency or --rate."
        )


def compare(these: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[Ratio]:
    """Every figure at every level that both have. Raises `Failure` when they have none in common."""
    found = []
    of_others = {level["load"]: level for level in others}
    for level in these:
        other = of_others.get(level["load"])
        if other is None:
            continue
        for name, title, more_is_better in FIGURES:
            ours, theirs = (_values(each["runs"], name) for each in (level, other))
            if ours and theirs:
                found.append(Ratio(level["load"], title, more_is_better, *ratio_of(ours, theirs)))
    if not found:
        raise Failure("the two load tests have no level in common: measure the same --concurrency or --rate.")
    return found


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float | None, float | None]:
    """(ratio of the geometric means, lower and upper bound)."""
    logs = [[math.log(value) for value in values] for values in (ours, theirs)]
    difference = statistics.fmean(logs[0]) - statistics.fmean(logs[1])
    if min(len(ours), len(theirs)) < 2:
        return math.exp(difference), None, None
    parts = [statistics.variance(values) / len(values) for values in logs]
    error = math.sqrt(sum(parts))
    if error == 0:
        return math.exp(difference), math.exp(difference), math.exp(difference)
    # Welch–Satterthwaite
    degrees = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, logs, strict=True))
    half = t975(degrees) * error
    return math.exp(difference), math.exp(difference - half), math.exp(difference + half)


def _values(runs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [run[name] for run in runs if run.get(name)]
