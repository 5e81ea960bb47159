"""How long a step is that nobody set: by the model and the processor, within bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.engines.openvino.chunk import (
    LEAST,
    MOST,
    PROMPT_ROOM,
    ROUND,
    operations_per_token,
    tokens_per_step,
)
from inflight.errors import LoadError

pytestmark = pytest.mark.fast

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
QWEN3_30B_A3B = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
}


@pytest.mark.parametrize(
    ("config", "weights"), [(LLAMA_8B, 6.98e9), (SMOLLM2, 106e6), (QWEN3_30B_A3B, 2.7e9)]
)  # of the layers, as their cards and files have them; of experts those that a token meets
def test_operations_are_those_of_known_models(config: dict[str, int], weights: float) -> None:
    assert operations_per_token(config) == pytest.approx(2 * weights, rel=0.02)


def test_a_model_without_an_inner_size_has_four_times_its_width() -> None:
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    assert operations_per_token(config) == operations_per_token({**config, "intermediate_size": 256})


def test_a_count_that_every_engine_needs_is_refused_by_name() -> None:
    with pytest.raises(LoadError, match="num_hidden_layers"):
        operations_per_token({**SMOLLM2, "num_hidden_layers": "all"})


@pytest.mark.parametrize("odd", [0, None, "8", True, [], ["x"], {"a": 1}, -3, 1.5])
@pytest.mark.parametrize("name", ["num_experts_per_tok", "moe_intermediate_size", "head_dim"])
def test_what_only_the_estimate_needs_never_keeps_a_model_from_loading(name: str, odd: object) -> None:
    """Configurations without experts say 0, or null."""
    assert operations_per_token({**SMOLLM2, name: odd}) == operations_per_token(SMOLLM2)


def test_a_size_for_each_layer_counts_as_the_largest() -> None:
    assert operations_per_token({**SMOLLM2, "intermediate_size": [768, 1536]}) == operations_per_token(SMOLLM2)


def test_a_large_model_on_few_cores_has_the_least_and_a_small_one_on_many_the_most() -> None:
    assert tokens_per_step(LLAMA_8B, 2, False, 16) == LEAST
    assert tokens_per_step(SMOLLM2, 16, True, 16) == MOST


@given(cores=st.integers(1, 256), integers=st.booleans(), running=st.integers(1, 2000))
def test_bounds(cores: int, integers: bool, running: int) -> None:
    for config in (LLAMA_8B, SMOLLM2, QWEN3_30B_A3B):
        tokens = tokens_per_step(config, cores, integers, running)
        assert tokens % ROUND == 0
        assert max(LEAST, running + PROMPT_ROOM) <= tokens < max(MOST, running + PROMPT_ROOM) + ROUND
        assert tokens <= tokens_per_step(config, cores + 1, integers, running)
        assert tokens <= tokens_per_step(config, cores, True, running)
