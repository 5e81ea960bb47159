"""Figures with their spread, and how quiet the machine was meanwhile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bench.quiet import CpuTime


class Others:
    """The share of the machine (0 … 1) that other programs used while a block of `watched` ran."""

    share = 0.0


@contextmanager
def watched(cpu_of_peer: Any) -> Iterator[Others]:
    """Measure what others use meanwhile; `cpu_of_peer()` gives CPU seconds of what is measured, less this process."""
    others = Others()
    before, theirs, ours = CpuTime.now(), cpu_of_peer(), time.process_time()
    yield others
    used = cpu_of_peer() - theirs + time.process_time() - ours
    others.share = round(CpuTime.now().share_of_others(before, used), 4)


def spread(values: Sequence[float], digits: int = 2) -> dict[str, Any]:
    """Median, least and most, and the values themselves."""
    return {
        "median": round(statistics.median(values), digits),
        "least": round(min(values), digits),
        "most": round(max(values), digits),
        "all": [round(value, digits) for value in values],
    }
