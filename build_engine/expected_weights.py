"""Names and shapes of the weights that a configuration asks for: what the classes of ``transformers`` would make."""

from __future__ import annotations

from collections.abc import Iterator

from build_engine.hf_config import Experts, Latent, ModelConfig, sparse_layers

Shape = tuple[int, ...]
Weight = tuple[str, Shape]

QK_NORMS = ("qwen3", "qwen3_moe", "gemma3_text")
"""Whose queries and keys are normed head by head; OLMo 2's are normed whole."""

ALWAYS_BIASED = ("qwen2",)
NEVER_BIASED = ("mistral", "ministral", "mixtral", "phi3")
OUTPUT_BIASED = (
    "llama",
    "qwen3",
    "qwen3_moe",
    "gemma",
    "gemma2",
    "gemma3_text",
    "smollm3",
    "granite",
    "olmo2",
    "gpt_oss",
)
"""Whose ``attention_bias`` is also that of the output projection; Qwen2's and Qwen2-MoE's is not."""

MLP_BIASED = ("llama", "smollm3", "granite")
DEEPSEEK = ("deepseek_v2", "deepseek_v3")

NORMS = ("input_layernorm", "post_attention_layernorm")
NORMS_OF = {
    **dict.fromkeys(("gemma2", "gemma3_text"), (*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def expected(config: ModelConfig) -> dict[str, Shape]:
    """Every weight by name, the head included whether it is tied or not."""
    vocabulary, hidden = (config.vocab_size, config.hidden_size), config.hidden_size
    layers = "model.layers"
    if config.model_type == "gpt_neox":
        layers = "gpt_neox.layers"
        final = {"gpt_neox.final_layer_norm.weight": (hidden,), "gpt_neox.final_layer_norm.bias": (hidden,)}
        found: dict[str, Shape] = {"gpt_neox.embed_in.weight": vocabulary, **final, "embed_out.weight": vocabulary}
    else:
        found = {EMBEDDING: vocabulary, "model.norm.weight": (hidden,), HEAD: vocabulary}
    sparse = sparse_layers(config)
    for number in range(config.num_layers):
        for name, shape in layer(config, number in sparse):
            found[f"{layers}.{number}.{name}"] = shape
    return found


def layer(config: ModelConfig, sparse: bool) -> Iterator[Weight]:
    """The weights of one decoder layer; with ``sparse`` its MLP is a mixture of experts."""
    hidden, kind = config.hidden_size, config.model_type
    if kind == "gpt_neox":
        yield from _neox(config)
        return
    yield from _attention(config) if config.latent is None else _latent_attention(config, config.latent)
    for norm in NORMS_OF.get(kind, NORMS):
        yield f"{norm}.weight", (hidden,)
    if sparse and config.experts is not None:
        yield from _experts(config, config.experts)
    elif kind == "phi3":
        yield "mlp.gate_up_proj.weight", (2 * config.intermediate_size, hidden)
        yield "mlp.down_proj.weight", (hidden, config.intermediate_size)
    else:
        yield from _mlp("mlp", hidden, config.intermediate_size, config.mlp_bias and kind in MLP_BIASED)


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
    if kind in QK_NORMS or kind == "olmo2":
        yield "self_attn.q_norm.weight", (query if kind == "olmo2" else config.head_dim,)
        yield "self_attn.k_norm.weight", (key if kind == "olmo2" else config.head_dim,)
    if kind == "gpt_oss":
        yield "self_attn.sinks", (config.num_heads,)


def _latent_attention(config: ModelConfig, latent: Latent) -> Iterator[Weight]:
    hidden, heads = config.hidden_size, config.num_heads
    query = heads * (latent.nope_dim + latent.rope_dim)
    if latent.query_rank is None:
        yield "self_attn.q_proj.weight", (query, hidden)
    else:
        yield "self_attn.q_a_proj.weight", (latent.query_rank, hidden)
        yield "self_attn.q_a_layernorm.weight", (latent.query_rank,)
        yield "self_attn.q_b_proj.weight", (query, latent.query_rank)
    yield "self_attn.kv_a_proj_with_mqa.weight", (latent.rank + latent.rope_dim, hidden)
    yield "self_attn.kv_a_layernorm.weight", (latent.rank,)
    yield "self_attn.kv_b_proj.weight", (heads * (latent.nope_dim + latent.value_dim), latent.rank)
    yield "self_attn.o_proj.weight", (hidden, heads * latent.value_dim)


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
    hidden, width, count = config.hidden_size, experts.intermediate_size, experts.count
    if config.model_type == "mixtral":
        yield "block_sparse_moe.gate.weight", (count, hidden)
        for number in range(count):
            place = f"block_sparse_moe.experts.{number}"
            yield f"{place}.w1.weight", (width, hidden)
            yield f"{place}.w2.weight", (hidden, width)
            yield f"{place}.w3.weight", (width, hidden)
        return
    if config.model_type == "gpt_oss":
        yield from (("mlp.router.weight", (count, hidden)), ("mlp.router.bias", (count,)))
        yield "mlp.experts.gate_up_proj", (count, hidden, 2 * width)
        yield "mlp.experts.gate_up_proj_bias", (count, 2 * width)
        yield "mlp.experts.down_proj", (count, width, hidden)
        yield "mlp.experts.down_proj_bias", (count, hidden)
        return
    yield "mlp.gate.weight", (count, hidden)
    if config.model_type == "deepseek_v3":
        yield "mlp.gate.e_score_correction_bias", (count,)
    for number in range(count):
        yield from _mlp(f"mlp.experts.{number}", hidden, width)
    if experts.shared_intermediate_size:
        shared = "mlp.shared_experts" if config.model_type in DEEPSEEK else "mlp.shared_expert"
        yield from _mlp(shared, hidden, experts.shared_intermediate_size)
        if config.model_type not in DEEPSEEK:
            yield "mlp.shared_expert_gate.weight", (1, hidden)


def _neox(config: ModelConfig) -> Iterator[Weight]:
    hidden, width = config.hidden_size, config.intermediate_size
    for norm in NORMS:
        yield from ((f"{norm}.weight", (hidden,)), (f"{norm}.bias", (hidden,)))
    for name, shape, biased in (
        ("attention.query_key_value", (3 * hidden, hidden), config.attention_bias),
        ("attention.dense", (hidden, hidden), config.attention_bias),
        ("mlp.dense_h_to_4h", (width, hidden), True),
        ("mlp.dense_4h_to_h", (hidden, width), True),
    ):
        yield f"{name}.weight", shape
        if biased:
            yield f"{name}.bias", shape[:1]
