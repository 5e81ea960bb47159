"""What the tests of the pure core share: hypothesis strategies, and short ways to make requests."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from inflight.engines.base import Capability, EngineInfo, EngineRequest, SamplingParams
from inflight.model.parameters import ModelConfig
from inflight.request.defaults import GenerationDefaults
from inflight.request.parse import GenerationRequest, RawRequest, parse_request

T = TypeVar("T")


def budget(examples: int, **more: Any) -> settings:
    """Settings of a property test: no time limit per example, because this machine is shared and noisy.

    The environment variable INFLIGHT_EXAMPLES multiplies the examples, to look for what happens once in many runs.
    """
    times = int(os.environ.get("INFLIGHT_EXAMPLES", "1"))
    quiet = [HealthCheck.too_slow]
    return settings(max_examples=examples * times, deadline=None, suppress_health_check=quiet, print_blob=True, **more)


@st.composite
def cuts(draw: st.DrawFn, items: Sequence[T]) -> list[Sequence[T]]:
    """`items` cut into consecutive pieces, empty ones included."""
    places = draw(st.lists(st.integers(0, len(items)), max_size=8).map(sorted))
    borders = [0, *places, len(items)]
    return [items[start:end] for start, end in itertools.pairwise(borders)]


def request(
    config: ModelConfig | None = None, defaults: GenerationDefaults | None = None, **values: Any
) -> GenerationRequest:
    """A parsed request out of plain values; each is given as `sampling_parameters` would give it."""
    parameters = {"text_input": "hi", **values}
    if "messages" in values or "input_ids" in values:
        del parameters["text_input"]
    tensors = {name: list(value) if isinstance(value, (list, tuple)) else [value] for name, value in parameters.items()}
    tensors = {
        name: [item.encode() if isinstance(item, str) else item for item in items] for name, items in tensors.items()
    }
    return parse_request(RawRequest(tensors), config or ModelConfig(), defaults or GenerationDefaults())


def info(**changes: Any) -> EngineInfo:
    """An engine with every capability."""
    values: dict[str, Any] = {
        "name": "fake",
        "version": "1",
        "vocab_size": 1000,
        "max_seq_len": 512,
        "max_running": 8,
        "block_size": 16,
        "blocks_total": 64,
        "stop_token_ids": (1,),
        "capabilities": frozenset(Capability),
        "max_beam_width": 4,
    }
    return EngineInfo(**{**values, **changes})


def engine_request(request_id: int, prompt_tokens: int = 4, max_tokens: int = 8, **changes: Any) -> EngineRequest:
    """What admission and engines see; `priority` goes to the request, the rest to its sampling parameters."""
    priority = changes.pop("priority", 0)
    token_ids = changes.pop("token_ids", None) or [7] * prompt_tokens
    sampling = SamplingParams(max_tokens=max_tokens, **changes)
    return EngineRequest(request_id=request_id, token_ids=token_ids, sampling=sampling, priority=priority)
