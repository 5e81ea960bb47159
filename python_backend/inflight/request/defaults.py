"""Sampling defaults of a checkpoint, for what a request leaves open."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inflight.errors import LoadError, quoted
from inflight.model.files import read_json_object


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling defaults of the model's generation_config.json; None where it says nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """Sampling defaults of the checkpoint. `do_sample: false` (or its absence) means greedy, as in transformers."""
    content = read_json_object(folder, "generation_config.json")
    repetition_penalty = _number(content, "repetition_penalty")
    if not content.get("do_sample", False):
        return GenerationDefaults(repetition_penalty=repetition_penalty)
    temperature, top_k = _number(content, "temperature"), _number(content, "top_k")
    return GenerationDefaults(
        temperature=1.0 if temperature is None else temperature,
        top_p=_number(content, "top_p"),
        top_k=None if top_k is None else int(top_k),
        min_p=_number(content, "min_p"),
        repetition_penalty=repetition_penalty,
    )


def _number(content: Mapping[str, Any], name: str) -> float | None:
    value = content.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    if not abs(value) < 2**31:
        raise LoadError(
            f"{name} of generation_config.json is {quoted(value)}, which is no setting of a sampler; mend it."
        )
    return float(value)
