"""What a model computes for a token, and how long a step of it may take."""

from __future__ import annotations

import pytest

from inflight.errors import LoadError
from inflight.model.operations import longest_step_s, operations_per_token

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


def test_the_longest_step_is_many_times_what_was_measured() -> None:
    """Two cores of a Zen 3, 8-bit weights, on a slow day: 2,048 tokens of half a billion parameters took 17 s."""
    half_a_billion = {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    }
    assert 60 < longest_step_s(half_a_billion, 2048, 2) < 600
    assert longest_step_s(SMOLLM2, 224, 2) < 10, "a small model's hang is noticed as soon as `stall_timeout_ms` says"
    assert longest_step_s(LLAMA_8B, 128, 2) > 2 * 20, "128 tokens of it would take 20 s there, as reckoned"
