"""Names and shapes of weights against those that the classes of transformers make, without making a weight."""

from __future__ import annotations

from typing import Any

import pytest

from build_engine import hf_config
from build_engine.architectures import SUPPORTED
from build_engine.expected_weights import expected
from inflight_tools.common.tiny_models import LLAMA

pytestmark = pytest.mark.fast

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DEEPSEEK = {
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 20,
    "num_key_value_heads": 4,
}
BIASED = {"attention_bias": True, "mlp_bias": True}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", BIASED),
    ("mistral", {"head_dim": 24}),
    ("ministral", {"head_dim": 16}),
    ("mixtral", {"num_local_experts": 4}),
    ("qwen2", {}),
    ("qwen2_moe", {**MOE, "shared_expert_intermediate_size": 48}),
    ("qwen3", {"head_dim": 24}),
    ("qwen3", {"attention_bias": True}),
    ("qwen3_moe", {**MOE, "decoder_sparse_step": 2}),
    ("gemma", {"head_dim": 24}),
    ("gemma2", {"head_dim": 24}),
    ("gemma3_text", {"head_dim": 24}),
    ("phi3", {}),
    ("smollm3", {}),
    ("smollm3", BIASED),
    ("granite", {}),
    ("granite", BIASED),
    ("olmo2", {}),
    ("gpt_oss", {"num_local_experts": 4}),
    ("deepseek_v2", DEEPSEEK),
    ("deepseek_v2", {**DEEPSEEK, "q_lora_rank": None}),
    ("deepseek_v3", {**DEEPSEEK, "n_group": 1, "topk_group": 1}),
    ("gpt_neox", {}),
    ("llama", {**BIASED, "head_dim": 24}),
    ("mistral", {"attention_bias": True}),
    ("gemma2", {"attention_bias": True, "head_dim": 32}),
    ("qwen2_moe", {**MOE, "decoder_sparse_step": 2, "shared_expert_intermediate_size": 40}),
    ("qwen2_moe", {**MOE, "qkv_bias": False, "shared_expert_intermediate_size": 40}),
    ("qwen3_moe", {**MOE, "mlp_only_layers": [1], "attention_bias": True}),
]


@pytest.mark.parametrize(("kind", "more"), CASES)
def test_every_weight_has_the_name_and_the_shape_of_the_real_class(kind: str, more: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    settings = {**LLAMA, "num_hidden_layers": 3, "tie_word_embeddings": False, **more}
    config = transformers.AutoConfig.for_model(kind, **settings)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    raw = {**config.to_dict(), "architectures": [type(model).__name__]}
    assert expected(hf_config.parse(raw)) == {name: tuple(each.shape) for name, each in model.state_dict().items()}


def test_every_architecture_that_is_listed_is_held_against_its_class() -> None:
    assert {support.model_type for support in SUPPORTED.values()} == {kind for kind, _ in CASES}


WITHOUT_DEFAULTS = {"ministral", "deepseek_v2", "deepseek_v3"}
"""Ministral's class has no head_dim, and for latent attention that key says nothing."""


@pytest.mark.parametrize("model_type", sorted({kind for kind, _ in CASES} - WITHOUT_DEFAULTS))
def test_keys_that_a_file_leaves_out_have_the_defaults_of_transformers(model_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model_type)
    raw = {**config.to_dict(), "architectures": ["X"]}
    full = hf_config.parse(raw)
    short = hf_config.parse(
        {key: value for key, value in raw.items() if key not in ("head_dim", "num_key_value_heads", "qkv_bias")}
    )
    assert (short.head_dim, short.num_kv_heads, short.attention_bias) == (
        full.head_dim,
        full.num_kv_heads,
        full.attention_bias,
    )
