"""Numbers among an engine's options: what each must be at least. Used by every engine that reads options."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from inflight.errors import LoadError


def check_numbers(options: msgspec.Struct, least: Mapping[str, float], where: str = "engine_options:") -> None:
    """Raises `LoadError` for the first of the options in `least` that is below its least value, or no number at all
    (JSON as Python reads it has NaN and Infinity). None is no value and passes.
    """
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and not (math.isfinite(value) and value >= bound):
            wants = "must not be negative" if bound == 0 else f"must be at least {bound:g}"
            raise LoadError(f"{where} {name} {wants}, but is {value:g}.")
