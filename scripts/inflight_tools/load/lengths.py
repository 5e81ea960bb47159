"""Distributions of token counts for load tests: fixed, uniform, and the long-tailed kind of chats. Pure and seeded."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from inflight_tools.common.report import Failure

# Chats are long-tailed: a log-normal whose logarithm has this standard deviation has its median at 0.61 of the mean and
# one value in ten above 2.2 times the mean. The shape is our choice; published means of ShareGPT conversations (161
# prompt and 338 answer tokens; Kwon et al., "Efficient Memory Management for Large Language Model Serving with
# PagedAttention", SOSP 2023, figure 11) are the defaults of `sharegpt`.
_SIGMA = 1.0
SHAREGPT_PROMPT = 161
SHAREGPT_ANSWER = 338
_MOST = 10**9  # more is a slip of the finger
_LONGEST = 16  # times the mean; the tail beyond it is cut off


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of lengths in tokens, from `low` to `high`; `kind` is fixed, uniform or sharegpt."""

    kind: str
    low: int
    high: int
    mean: float

    def draws(self, seed: int | str) -> Iterator[int]:
        """Endless lengths."""
        chooser = random.Random(f"inflight lengths {seed}")
        while True:
            if self.kind == "sharegpt":
                drawn = round(chooser.lognormvariate(math.log(self.mean) - _SIGMA**2 / 2, _SIGMA))
                yield min(max(drawn, self.low), self.high)
            else:
                yield chooser.randint(self.low, self.high)

    def __str__(self) -> str:
        """As it is written on the command line."""
        if self.kind == "fixed":
            return str(self.low)
        return f"uniform:{self.low}-{self.high}" if self.kind == "uniform" else f"sharegpt:{self.mean:g}"


def parse_lengths(text: str, sharegpt_mean: int) -> Lengths:
    """`64`, `uniform:16-256`, `sharegpt` (its mean is `sharegpt_mean` then) or `sharegpt:100`. Raises `Failure`."""
    kind, _, rest = text.partition(":")
    try:
        if kind == "uniform":
            low, high = (int(part) for part in rest.split("-"))
        elif kind == "sharegpt":
            low, mean = 1, int(rest) if rest else sharegpt_mean
            high = _LONGEST * mean
            if 0 < high <= _MOST:
                return Lengths(kind, low, high, mean)
        else:
            low = high = int(text)
            kind = "fixed"
    except ValueError:
        low = high = 0
    if not 1 <= low <= high <= _MOST:
        raise Failure(f"{text!r} is no length: use a number from 1 on, uniform:LOW-HIGH, sharegpt or sharegpt:MEAN.")
    return Lengths(kind, low, high, (low + high) / 2)
