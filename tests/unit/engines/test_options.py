"""No engine takes a number among its options that cannot be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from inflight.engines.openvino import engine as openvino
from inflight.engines.simulated.cost import SimulatedOptions
from inflight.engines.tensorrt_llm import options as tensorrt_llm
from inflight.engines.vllm import options as vllm
from inflight.errors import LoadError

pytestmark = pytest.mark.fast

READERS: dict[str, tuple[Any, type[msgspec.Struct], Mapping[str, float]]] = {
    "openvino": (openvino.read_options, openvino.OpenVinoOptions, openvino._LEAST),
    "vllm": (vllm.read_options, vllm.VllmOptions, vllm.LEAST),
    "tensorrt_llm": (tensorrt_llm.read_options, tensorrt_llm.TensorRtLlmOptions, tensorrt_llm.LEAST),
}
# Options that are checked by rules of their own.
OTHERWISE = {
    "gpu_memory_utilization",
    "num_draft_tokens",
    "ngram_max",
    "kv_cache_free_gpu_mem_fraction",
    "cross_kv_cache_fraction",
    "lora_cache_gpu_memory_fraction",
    "gpu_weights_percent",
    "prompt_retention_priority",
}


def numbers(options: type[msgspec.Struct]) -> list[str]:
    """The options that are numbers."""
    return [
        field.name for field in msgspec.structs.fields(options) if field.type in (int, float, int | None, float | None)
    ]


@pytest.mark.parametrize("engine", READERS)
def test_a_number_that_cannot_be_is_refused_by_name(engine: str) -> None:
    read, options, least = READERS[engine]
    assert set(numbers(options)) <= set(least) | OTHERWISE, "an option has no least value"
    for name, bound in least.items():
        wrong = [bound - 1]
        if {field.name: field.type for field in msgspec.structs.fields(options)}[name] is float:
            wrong += [math.nan, math.inf, -math.inf]
        for value in wrong:
            with pytest.raises(LoadError) as caught:
                read({name: value})
            assert f"{name} must" in str(caught.value)
            assert str(caught.value).endswith(".")


def test_the_simulated_engine_has_bounds_in_its_types() -> None:
    assert not numbers(SimulatedOptions)
