"""Sampling defaults of a checkpoint, for what a request leaves open, and the bounds of both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from inflight.errors import LoadError, RequestError, quoted
from inflight.model.files import read_json_object
from inflight.request.limits import MAX_REPETITION_PENALTY, MAX_TEMPERATURE
from inflight.request.values import Values

BOUNDS: dict[str, dict[str, float]] = {
    "temperature": {"least": 0.0, "most": MAX_TEMPERATURE},
    "top_p": {"above": 0.0, "most": 1.0},
    "min_p": {"least": 0.0, "most": 1.0},
    "repetition_penalty": {"above": 0.0, "most": MAX_REPETITION_PENALTY},
}
LEAST_TOP_K = -1
FILE = "generation_config.json"


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling defaults of the model's generation_config.json; None where it says nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """Sampling defaults of the checkpoint. `do_sample: false` (or its absence) means greedy, as in transformers, and
    what would narrow the choice then is not looked at.

    Raises `LoadError` for a value that a request could not have either: every request would be refused for it.
    """
    content = read_json_object(folder, FILE)
    do_sample = content.get("do_sample")
    if not isinstance(do_sample, (bool, type(None))):
        raise LoadError(f"do_sample of {FILE} is {quoted(do_sample)} and has to be true or false; mend it.")
    repetition_penalty = _number(content, "repetition_penalty")
    if not do_sample:
        return GenerationDefaults(repetition_penalty=repetition_penalty)
    temperature = _number(content, "temperature")
    return GenerationDefaults(
        temperature=1.0 if temperature is None else temperature,
        top_p=_number(content, "top_p"),
        top_k=_top_k(content),
        min_p=_number(content, "min_p"),
        repetition_penalty=repetition_penalty,
    )


def _number(content: dict[str, Any], name: str) -> float | None:
    values = _given(content, name)
    try:
        return values.number(name, 0.0, **BOUNDS[name]) if values.given(name) else None
    except RequestError as error:
        raise _refused(error) from None


def _top_k(content: dict[str, Any]) -> int | None:
    values = _given(content, "top_k")
    try:
        return values.integer("top_k", 0, LEAST_TOP_K) if values.given("top_k") else None
    except RequestError as error:
        raise _refused(error) from None


def _given(content: dict[str, Any], name: str) -> Values:
    """As if a client had sent it. Clients may write numbers as text; checkpoints do not."""
    value = content.get(name)
    if isinstance(value, str):
        raise LoadError(f"{name} of {FILE} is {quoted(value)} and has to be a number; mend it.")
    return Values({}, {name: value})


def _refused(error: RequestError) -> LoadError:
    """The sentence begins with the name: "top_p must be at most 1, but is 2"."""
    name, _, problem = error.message.partition(" ")
    return LoadError(f"{name} of {FILE} {problem}; mend it.")
