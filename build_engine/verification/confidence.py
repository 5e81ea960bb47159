"""How far a mean over windows of text can be trusted: both sides read the same windows, so each gives one difference.

The windows are short and follow each other; their differences are taken for independent draws (Student 1908).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ONE_SIDED_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761)
"""Quantiles of Student's t by degrees of freedom, from 1."""

LEAST_PARTS = 8
LEAST_SPAN, MOST_SPAN = 16, 128


@dataclass(frozen=True, slots=True)
class Part:
    """Sums over the predictions of some consecutive tokens; both sides read the same ones."""

    tokens: int
    loss: float
    reference_loss: float
    divergence: float


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and what it is at least and at most, each with 95 % confidence."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], weights: Sequence[float]) -> Interval:
    """Of the mean of ``values``, each of which stands for so many tokens; a single value bounds nothing."""
    total = sum(weights)
    mean = sum(value * weight for value, weight in zip(values, weights, strict=True)) / total
    if len(values) < 2 or not math.isfinite(mean):
        return Interval(mean, -math.inf if math.isfinite(mean) else mean, math.inf)
    count = len(values)
    spread = sum(((value - mean) * weight / total) ** 2 for value, weight in zip(values, weights, strict=True))
    error = math.sqrt(spread * count / (count - 1))
    reach = error * quantile(count - 1)
    return Interval(mean, mean - reach, mean + reach)


def quantile(freedom: int) -> float:
    """Student's t that 95 % of draws stay below; beyond the table by its expansion in 1/freedom (error below 0.001)."""
    if freedom <= len(ONE_SIDED_95):
        return ONE_SIDED_95[freedom - 1]
    normal = 1.6449
    return normal + (normal**3 + normal) / (4 * freedom)


def span_for(tokens: int) -> int:
    """How many predictions make a part, so that there are enough parts to see how much they differ."""
    return max(LEAST_SPAN, min(MOST_SPAN, tokens // LEAST_PARTS))
