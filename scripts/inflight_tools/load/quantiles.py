"""Distributions of times as a few dozen numbers: enough to draw one, and to keep it beside a test's figures. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_NS_PER_MS = 1e6
# The shares at which a distribution is kept: every twentieth, and the ends closer.
SHARES = (0.0, 0.01, 0.02, *(step / 20 for step in range(1, 20)), 0.98, 0.99, 0.995, 0.999, 1.0)


@dataclass(frozen=True, slots=True)
class Curves:
    """Milliseconds at each of `shares`, from the least to the most; empty where nothing was measured."""

    shares: tuple[float, ...] = ()
    ttft: tuple[float, ...] = ()
    itl: tuple[float, ...] = ()
    latency: tuple[float, ...] = ()


def quantiles(values_ns: Sequence[float], weights: Sequence[int] | None = None) -> tuple[float, ...]:
    """Milliseconds at each of `SHARES` of nanoseconds, each `weights` times: values that occurred (nearest rank)."""
    if not values_ns:
        return ()
    values = np.asarray(values_ns, dtype=float) / _NS_PER_MS
    counts = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    order = np.argsort(values)
    values, ranks = values[order], np.cumsum(counts[order])
    return tuple(float(values[np.searchsorted(ranks, share * ranks[-1] - 1e-9)]) for share in SHARES)
