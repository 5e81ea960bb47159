"""Names and shapes of the weights that a configuration asks for: what the classes of ``transformers`` would make."""

from __future__ import annotations

from collections.abc import Iterator

from build_engine.hf_config import Experts, ModelConfig
from build_engine.planning.model_size import sparse_layers

Shape = tuple[int, ...]
Weight = tuple[str, Shape]

QK_NORMS = ("qwen3", "qwen3_moe", "gemma3_text")
ALWAYS_BIASED = ("qwen2",)
NEVER_BIASED = ("mistral", "mixtral", "phi3")
OUTPUT_BIASED = ("llama", "qwen3", "qwen3_moe", "gemma2", "gemma3_text")
"""Whose ``attention_bias`` is also that of the output projection; Qwen2's and Qwen2-MoE's is not."""

NORMS = ("input_layernorm", "post_attention_layernorm")
FOUR_NORMS = (*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def expected(config: ModelConfig) -> dict[str, Shape]:
    """Every weight by name, the head included whether it is tied or not."""
    vocabulary = (config.vocab_size, config.hidden_size)
    found: dict[str, Shape] = {EMBEDDING: vocabulary, "model.norm.weight": (config.hidden_size,), HEAD: vocabulary}
    sparse = sparse_layers(config)
    for layer in range(config.num_layers):
        for name, shape in _layer(config, layer in sparse):
            found[f"model.layers.{layer}.{name}"] = shape
    return found


def _layer(config: ModelConfig, sparse: bool) -> Iterator[Weight]:
    yield from _attention(config)
    four = config.model_type in ("gemma2", "gemma3_text")
    for norm in FOUR_NORMS if four else NORMS:
        yield f"{norm}.weight", (config.hidden_size,)
    if sparse and config.experts is not None:
        yield from _experts(config, config.experts)
    elif config.model_type == "phi3":
        yield "mlp.gate_up_proj.weight", (2 * config.intermediate_size, config.hidden_size)
        yield "mlp.down_proj.weight", (config.hidden_size, config.intermediate_size)
    else:
        yield from _mlp(
            "mlp", config.hidden_size, config.intermediate_size, config.mlp_bias and config.model_type == "llama"
        )


def _attention(config: ModelConfig) -> Iterator[Weight]:
    hidden, kind = config.hidden_size, config.model_type
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    biased = kind in ALWAYS_BIASED or (config.attention_bias and kind not in NEVER_BIASED)
    if kind == "phi3":
        yield "self_attn.qkv_proj.weight", (query + 2 * key, hidden)
    else:
        for name, width in (("q_proj", query), ("k_proj", key), ("v_proj", key)):
            yield f"self_attn.{name}.weight", (width, hidden)
            if biased:
                yield f"self_attn.{name}.bias", (width,)
    yield "self_attn.o_proj.weight", (hidden, query)
    if biased and kind in OUTPUT_BIASED:
        yield "self_attn.o_proj.bias", (hidden,)
    if kind in QK_NORMS:
        yield "self_attn.q_norm.weight", (config.head_dim,)
        yield "self_attn.k_norm.weight", (config.head_dim,)


def _mlp(place: str, hidden: int, width: int, biased: bool = False) -> Iterator[Weight]:
    for name, shape in (
        ("gate_proj", (width, hidden)),
        ("up_proj", (width, hidden)),
        ("down_proj", (hidden, width)),
    ):
        yield f"{place}.{name}.weight", shape
        if biased:
            yield f"{place}.{name}.bias", shape[:1]


def _experts(config: ModelConfig, experts: Experts) -> Iterator[Weight]:
    hidden, width = config.hidden_size, experts.intermediate_size
    if config.model_type == "mixtral":
        yield "block_sparse_moe.gate.weight", (experts.count, hidden)
        for number in range(experts.count):
            place = f"block_sparse_moe.experts.{number}"
            yield f"{place}.w1.weight", (width, hidden)
            yield f"{place}.w2.weight", (hidden, width)
            yield f"{place}.w3.weight", (width, hidden)
        return
    yield "mlp.gate.weight", (experts.count, hidden)
    for number in range(experts.count):
        yield from _mlp(f"mlp.experts.{number}", hidden, width)
    if experts.shared_intermediate_size:
        yield from _mlp("mlp.shared_expert", hidden, experts.shared_intermediate_size)
        yield "mlp.shared_expert_gate.weight", (1, hidden)
