"""Parameters and bytes of a decoder-only transformer, counted from its configuration.

Counts follow the weight shapes of the classes in ``transformers`` (checked against them in the tests): with hidden
size H, L layers, n query heads and m key/value heads of size d, MLP width I and vocabulary V,

- attention: H·n·d (query) + 2·H·m·d (key, value) + n·d·H (output), and biases where the architecture has them;
- gated MLP: 3·H·I, or for E experts of width J: E·3·H·J and the router H·E;
- embeddings: V·H, twice when input and output are not tied.
"""

from __future__ import annotations

from dataclasses import dataclass

from build_engine.hf_config import ModelConfig
from build_engine.quantization import Recipe, group_size_for

QK_NORM_TYPES = ("qwen3", "qwen3_moe", "gemma3_text")
FOUR_NORM_TYPES = ("gemma2", "gemma3_text")
SCALE_BYTES = 2
"""Scales of grouped weights are stored in the model's 16-bit type; zero points of 4-bit weights in a byte."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Counts by part. ``linear`` is what a recipe quantizes; ``active_linear`` what one token multiplies with."""

    embedding: int
    head: int
    linear: int
    active_linear: int
    other: int

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.linear + self.other

    @property
    def active(self) -> int:
        """Parameters that one token is multiplied with (the embedding is looked up, the head is multiplied)."""
        return self.active_linear + self.other + (self.head or self.embedding)


def count_parameters(config: ModelConfig) -> Parameters:
    """Count the parameters of ``config``."""
    hidden, head_dim = config.hidden_size, config.head_dim
    query, key_value = config.num_heads * head_dim, config.num_kv_heads * head_dim
    attention = hidden * query + 2 * hidden * key_value + query * hidden
    dense_mlp = 3 * hidden * config.intermediate_size
    sparse_layers = sparse_layer_count(config)
    dense_layers = config.num_layers - sparse_layers
    experts = config.experts
    linear = active = config.num_layers * attention + dense_layers * dense_mlp
    router = 0
    if experts is not None:
        one = 3 * hidden * experts.intermediate_size
        shared = 3 * hidden * experts.shared_intermediate_size
        linear += sparse_layers * (experts.count * one + shared)
        active += sparse_layers * (experts.active * one + shared)
        router = sparse_layers * (hidden * experts.count + (hidden if experts.shared_intermediate_size else 0))
    biases = query + 2 * key_value if config.attention_bias else 0
    if config.attention_bias and config.model_type not in ("qwen2", "qwen2_moe"):
        biases += hidden
    if config.mlp_bias:
        biases += 2 * config.intermediate_size + hidden
    norms = (4 if config.model_type in FOUR_NORM_TYPES else 2) * hidden
    if config.model_type in QK_NORM_TYPES:
        norms += 2 * head_dim
    embedding = config.vocab_size * hidden
    return Parameters(
        embedding=embedding,
        head=0 if config.tied_embeddings else embedding,
        linear=linear,
        active_linear=active,
        other=config.num_layers * (biases + norms) + hidden + router,
    )


def sparse_layers(config: ModelConfig) -> frozenset[int]:
    """Layers whose MLP is a mixture of experts (Qwen's ``decoder_sparse_step`` and ``mlp_only_layers`` count)."""
    if config.experts is None:
        return frozenset()
    step = int(config.raw.get("decoder_sparse_step") or 1)
    dense = {int(layer) for layer in config.raw.get("mlp_only_layers") or ()}
    return frozenset(layer for layer in range(config.num_layers) if layer not in dense and (layer + 1) % step == 0)


def sparse_layer_count(config: ModelConfig) -> int:
    return len(sparse_layers(config))


def weight_bytes(config: ModelConfig, recipe: Recipe, *, embedding_bits: float | None = None) -> int:
    """Bytes of all weights under ``recipe``: linear layers quantized with their scales, the rest as it is.

    ``embedding_bits`` says what embeddings and head take where the target quantizes those too (OpenVINO's int8).
    """
    return _quantized(config, recipe, count_parameters(config).linear, embedding_bits)


def bytes_read_per_step(config: ModelConfig, recipe: Recipe, sequences: int = 1) -> int:
    """Weight bytes that one decode step of ``sequences`` sequences reads.

    Dense layers are read once. Of E experts a batch of B tokens that each pick k at random reads
    E·(1 − (1 − k/E)^B) in expectation. Of the input embedding only one row a sequence is read.
    """
    parameters = count_parameters(config)
    linear = parameters.active_linear
    if config.experts is not None:
        share = 1 - (1 - config.experts.active / config.experts.count) ** sequences
        per_expert = sparse_layer_count(config) * 3 * config.hidden_size * config.experts.intermediate_size
        linear += round(per_expert * (config.experts.count * share - config.experts.active))
    every = _quantized(config, recipe, linear, None)
    return every if config.tied_embeddings else every - parameters.embedding * config.dtype_bytes


def _quantized(config: ModelConfig, recipe: Recipe, linear: int, embedding_bits: float | None) -> int:
    parameters = count_parameters(config)
    if recipe.weight_bits >= 16:
        bytes_linear = linear * float(config.dtype_bytes)
    else:
        bytes_linear = linear * (recipe.weight_bits / 8 + scale_bytes_per_weight(config, recipe))
    embedding_bytes = config.dtype_bytes if embedding_bits is None else embedding_bits / 8
    rest = (parameters.embedding + parameters.head) * embedding_bytes + parameters.other * config.dtype_bytes
    return round(bytes_linear + rest)


def scale_bytes_per_weight(config: ModelConfig, recipe: Recipe) -> float:
    """Bytes of scales per weight: one scale a group, or one an output channel, or one a tensor."""
    if not recipe.group_sizes:
        return 4 / config.hidden_size if recipe.weight_bits == 8 and not recipe.name.startswith("fp8") else 0.0
    group = group_size_for(recipe, [config.hidden_size, config.intermediate_size]) or min(recipe.group_sizes)
    return (1 if recipe.name == "nvfp4" else SCALE_BYTES) / group


def kv_bytes_per_token(config: ModelConfig, kv_bits: int, *, heads: int | None = None) -> int:
    """Bytes of keys and values that one token adds over all layers: 2·L·m·d·bits/8.

    ``heads`` replaces the number of key/value heads (full multi-head: ``config.num_heads``; multi-query: 1).
    """
    return 2 * config.num_layers * (heads or config.num_kv_heads) * config.head_dim * kv_bits // 8


def kv_bytes_per_sequence(config: ModelConfig, kv_bits: int, length: int, *, heads: int | None = None) -> int:
    """Bytes of a sequence of ``length`` tokens; layers with a sliding window keep only the window."""
    per_layer_token = kv_bytes_per_token(config, kv_bits, heads=heads) // config.num_layers
    window = min(length, config.sliding_window) if config.sliding_window else length
    full_layers = config.num_layers - config.sliding_layers
    return per_layer_token * (full_layers * length + config.sliding_layers * window)
