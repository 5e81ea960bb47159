"""Figures as a person reads them. Pure."""

from __future__ import annotations

import math

NOTHING = "–"


def number(value: float | None) -> str:
    """Three digits that count, whole from a hundred on: 8.23, 82.3, 823, 8,230."""
    if value is None or not math.isfinite(value):
        return NOTHING
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}" if size >= 0.01 or not size else f"{value:.2g}"


def in_flight(load: str, value: float) -> str:
    """A level's name for the legend of a picture: `16 in flight`, `4/s`."""
    if load.startswith("concurrency"):
        return f"{value:g} in flight"
    return f"{value:g}/s" if "requests/s" in load else load


def listed(parts: list[str]) -> str:
    """`1, 4 and 16`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
