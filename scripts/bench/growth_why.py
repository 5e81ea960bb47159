"""Why a growth curve bends: what is fixed, what grows with the size, and with its square. Pure.

Beside it what arithmetic and bytes alone would say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_KV_BITS = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """A model as far as costs depend on it. `weights_bytes`: what a step reads of the weights."""

    layers: int
    heads: int
    kv_heads: int
    width: int  # of a head
    parameters: float
    weights_bytes: float

    @classmethod
    def of(cls, config: Mapping[str, Any], parameters: float, weights_bytes: float) -> Shape:
        """From a checkpoint's config.json."""
        heads = int(config["num_attention_heads"])
        width = int(config.get("head_dim") or config["hidden_size"] // heads)
        kv_heads = int(config.get("num_key_value_heads") or heads)
        return cls(int(config["num_hidden_layers"]), heads, kv_heads, width, parameters, weights_bytes)

    @property
    def attention_share(self) -> float:
        """Operations of attention per token of context, over those of the weights per token (both for one token)."""
        return 4 * self.layers * self.heads * self.width / (2 * self.parameters)

    @property
    def kv_share(self) -> float:
        """Bytes of keys and values per token of context, over those of the weights."""
        return 2 * self.layers * self.kv_heads * self.width * _KV_BITS / 8 / self.weights_bytes


def fit(points: Sequence[tuple[float, float]], powers: Sequence[int]) -> list[float]:
    """Coefficients ≥ 0 of these powers of the size, by relative least squares: small points count like large ones."""
    sizes, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    kept = list(powers)
    while True:
        matrix = np.stack([sizes**power / values for power in kept], axis=1)
        found = np.linalg.lstsq(matrix, np.ones(len(values)), rcond=None)[0]
        if (found >= 0).all() or len(kept) == 1:
            by_power = dict(zip(kept, found.tolist(), strict=True))
            return [max(by_power.get(power, 0.0), 0.0) for power in powers]
        del kept[int(np.argmin(found * [float(sizes.max()) ** power for power in kept]))]


def prompts(points: Sequence[tuple[float, float]], shape: Shape) -> str:
    """Of (tokens of the prompt, ms to the first token)."""
    fixed, per_token, per_square = fit(points, (0, 1, 2))
    most = max(size for size, _ in points)
    square = per_square * most**2 / (fixed + per_token * most + per_square * most**2)
    said = f"{fixed:.0f} ms, and {per_token:.2f} ms a token; {square:.0%} of the time at {most:.0f} tokens grows with "
    said += "their square: attention"
    if per_square and per_token:
        times = per_square / per_token / (shape.attention_share / 2)
        said += f", whose operations are {shape.attention_share * most / 2:.0%} of the weights' there on average, so "
        said += f"that one of attention takes {times:.1f} times one of a weight"
    return said


def answers(points: Sequence[tuple[float, float]], shape: Shape) -> str:
    """Of (tokens of the answer, ms a token)."""
    fixed, per_token = fit(points, (0, 1))
    most = max(size for size, _ in points)
    said = f"{fixed:.1f} ms a token, and {1000 * per_token:.2f} ms more for every 1,000 tokens of the answer"
    if fixed:
        times = 2 * per_token / fixed / shape.kv_share
        said += (
            f" ({per_token * most / fixed:.0%} at {most:.0f}): keys and values, each byte of which takes {times:.1f} "
        )
        said += "times one of the weights"
    return said


def streams(points: Sequence[tuple[float, float]]) -> str:
    """Of (streams, tokens/s): a step gives each a token."""
    steps = [(size, 1000 * size / rate) for size, rate in points]
    fixed, per_stream = fit(steps, (0, 1))
    said = f"a step takes {fixed:.3g} ms and {per_stream:.3g} ms more for every stream"
    if per_stream:
        said += f": beyond {fixed / per_stream:.0f} streams what each adds is more than what all share, "
        said += f"and no number of streams gives more than {1000 / per_stream:,.0f} tokens/s"
    return said
