"""What a GGUF file says about its model: an architecture that is known here, as config.json, or a refusal by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from build_engine.errors import UserMistake

Metadata = Mapping[str, Any]

ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
}
"""GGUF's names of architectures → transformers' class and model_type. Mistral's files say llama."""

LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
GEMMA_TENSORS = {
    **LAYER_TENSORS,
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
FREQUENCIES = "rope_freqs.weight"
"""Divisors of the rotary frequencies: how a file carries Llama 3.1's scaling, which has no key of its own."""

LLAMA3 = [
    {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for factor in (8.0, 32.0)
]
"""The scalings that Llama 3.1 and 3.3 (8) and Llama 3.2 (32) were published with."""

GEMMA_27B_LAYERS = 62


def name_of(tensor: str, architecture: str) -> str | None:
    """Transformers' name of a GGUF tensor; None for one that is no weight of the model."""
    stem, _, kind = tensor.rpartition(".")
    if not stem.startswith("blk."):
        return f"{TENSORS[stem]}.{kind}" if stem in TENSORS else None
    _, layer, name = stem.split(".", 2)
    names = GEMMA_TENSORS if architecture == "gemma3" else LAYER_TENSORS
    return f"model.layers.{layer}.{names[name]}.{kind}" if name in names else None


def architecture_of(metadata: Metadata, file: str) -> str:
    """GGUF's name of the architecture; `UserMistake` for one that is not known here."""
    name = str(metadata.get("general.architecture"))
    if name not in ARCHITECTURES:
        raise UserMistake(
            f"{file} holds a model of the architecture {name}; of GGUF files {', '.join(ARCHITECTURES)} are read: give "
            "the Hugging Face checkpoint it was made from"
        )
    if int(metadata.get(f"{name}.expert_count") or 0):
        raise UserMistake(
            f"{file} holds a mixture of experts, which is not read from GGUF files: give the Hugging Face checkpoint "
            "it was made from"
        )
    return name


def config_of(
    metadata: Metadata, tensors: Sequence[str], frequencies: Sequence[float] | None, file: str
) -> dict[str, Any]:
    """config.json for the model. Raises `UserMistake` for what cannot be said in one, and for missing figures."""
    architecture = architecture_of(metadata, file)
    class_name, model_type = ARCHITECTURES[architecture]

    def figure(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        if value is None:
            raise UserMistake(f"{file} does not say {architecture}.{key}: it is damaged, or no whole model")
        return value

    heads, hidden = int(figure("attention.head_count")), int(figure("embedding_length"))
    head_dim = int(
        figure("attention.key_length", metadata.get(f"{architecture}.rope.dimension_count", hidden // heads))
    )
    config: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": len(metadata.get("tokenizer.ggml.tokens") or ()) or int(figure("vocab_size")),
        "hidden_size": hidden,
        "intermediate_size": int(figure("feed_forward_length")),
        "num_hidden_layers": int(figure("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(figure("attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": int(figure("context_length")),
        "rms_norm_eps": float(f"{figure('attention.layer_norm_rms_epsilon'):.6g}"),  # stored as a 32-bit float
        "rope_theta": float(figure("rope.freq_base", 10_000.0)),
        "rope_scaling": _scaling(metadata, architecture, frequencies, head_dim, file),
        "attention_bias": architecture == "qwen2" or "blk.0.attn_q.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if architecture == "gemma3":
        config |= _gemma(config, int(figure("attention.sliding_window")))
    return config


def _gemma(config: Mapping[str, Any], window: int) -> dict[str, Any]:
    """What Gemma 3's files leave to the reader: every sixth layer sees everything, the others a window."""
    layers = range(1, config["num_hidden_layers"] + 1)
    largest = config["num_hidden_layers"] == GEMMA_27B_LAYERS
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": window,
        "layer_types": ["full_attention" if layer % 6 == 0 else "sliding_attention" for layer in layers],
        "rope_local_base_freq": 10_000.0,
        "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"]
        if largest
        else config["head_dim"],
    }


def _scaling(
    metadata: Metadata, architecture: str, frequencies: Sequence[float] | None, head_dim: int, file: str
) -> dict[str, Any] | None:
    kind = str(metadata.get(f"{architecture}.rope.scaling.type") or "none")
    if kind in ("linear", "yarn"):
        scaling: dict[str, Any] = {"rope_type": kind, "factor": float(metadata[f"{architecture}.rope.scaling.factor"])}
        original = metadata.get(f"{architecture}.rope.scaling.original_context_length")
        return (
            {**scaling, "original_max_position_embeddings": int(original)} if kind == "yarn" and original else scaling
        )
    if kind != "none":
        raise UserMistake(
            f"{file} scales its rotary embedding by {kind}, which is not read from GGUF files: give the Hugging Face "
            "checkpoint it was made from"
        )
    if frequencies is None:
        return None
    base = float(metadata.get(f"{architecture}.rope.freq_base") or 10_000.0)
    for scaling in LLAMA3:
        if _agree(frequencies, divisors(scaling, base, head_dim)):
            return scaling
    raise UserMistake(
        f"{file} divides its rotary frequencies ({FREQUENCIES}) as no Llama 3 does: give the Hugging Face checkpoint "
        "it was made from"
    )


def divisors(scaling: Mapping[str, Any], base: float, head_dim: int) -> list[float]:
    """By how much Llama 3's scaling divides each rotary frequency: not the fast ones, wholly the slow ones, and between
    the two a straight line in the number of turns within the original context.
    """
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    found = []
    for pair in range(head_dim // 2):
        turns = scaling["original_max_position_embeddings"] / (2 * math.pi * base ** (2 * pair / head_dim))
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1 / ((1 - share) / scaling["factor"] + share))
    return found


def _agree(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(one, other, strict=True))
