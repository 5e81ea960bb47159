"""Parameters and bytes of a decoder-only transformer, counted from its configuration.

Counts follow the weight shapes of the classes in ``transformers`` (`build_engine.expected_weights`, checked against
them in the tests). In formulas: hidden size H, L layers, n query heads and m key/value heads of size d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from build_engine.architectures import OPENVINO, TENSORRT_LLM
from build_engine.errors import UserMistake
from build_engine.expected_weights import layer
from build_engine.hf_config import ModelConfig, sparse_layers
from build_engine.openvino.recipes import compression_for
from build_engine.quantization import BY_TARGET, Recipe, group_size_for

SCALE_BYTES = 2
"""Scales of grouped weights are stored in the model's 16-bit type; zero points of 4-bit weights in a byte."""

BUILT_BYTES = 2
"""Of a weight that is not quantized: float32 checkpoints become 16 bits for GPUs."""

ROUTERS = ("mlp.gate.weight", "mlp.router.weight", "block_sparse_moe.gate.weight", "mlp.shared_expert_gate.weight")
"""Matrices that no recipe quantizes."""


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


@lru_cache(maxsize=64)
def count_parameters(config: ModelConfig) -> Parameters:
    """Count the parameters of ``config``: those of the main model, not of layers that only guess ahead (MTP)."""
    sparse = sparse_layer_count(config)
    linear = active = other = 0
    for kind, layers in ((True, sparse), (False, config.num_layers - sparse)):
        for name, shape in layer(config, kind) if layers else ():
            count = layers * math.prod(shape)
            if len(shape) < 2 or name.endswith("bias") or name in ROUTERS:
                other += count
                continue
            linear += count
            routed = config.experts is not None and ".experts." in f".{name}"
            active += count * config.experts.active // config.experts.count if routed and config.experts else count
    embedding = config.vocab_size * config.hidden_size
    final = (2 if config.model_type == "gpt_neox" else 1) * config.hidden_size
    return Parameters(
        embedding=embedding,
        head=0 if config.tied_embeddings else embedding,
        linear=linear,
        active_linear=active,
        other=other + final,
    )


def sparse_layer_count(config: ModelConfig) -> int:
    return len(sparse_layers(config))


def stored_bytes(config: ModelConfig, recipe: Recipe) -> dict[str, int]:
    """Bytes of the weights in the engines of each target that builds ``recipe``.

    TensorRT-LLM stores embeddings and head apart, also where the model says that they are one. OpenVINO quantizes both
    to 8 bits; a checkpoint of hf-quantized keeps one of what is one. With ``none`` these two keep the source's type.
    """
    parameters = count_parameters(config)
    once, twice = parameters.embedding + parameters.head, 2 * parameters.embedding
    found: dict[str, int] = {}
    for target in (target for target, able in BY_TARGET.items() if recipe.name in able):
        if target == OPENVINO and recipe.name != "none":
            size = _compressed(config, recipe, parameters.linear)
            if size is not None:
                rows = config.vocab_size * (2 if parameters.head else 1)
                found[target] = round(size + once + rows * ROW_BYTES + parameters.other * BUILT_BYTES)
            continue
        width = config.dtype_bytes if recipe.name == "none" and target != TENSORRT_LLM else BUILT_BYTES
        outside = twice if target == TENSORRT_LLM else once
        found[target] = round(
            _linear_bytes(config, recipe, parameters.linear, width) + (outside + parameters.other) * width
        )
    return found


ROW_BYTES = 3
"""Of a row of OpenVINO's 8-bit weights, beside them: a scale of 16 bits and a zero point."""


def _compressed(config: ModelConfig, recipe: Recipe, linear: int) -> float | None:
    """Bytes of OpenVINO's linear layers; None where the recipe does not fit the model's shapes or type."""
    try:
        compression = compression_for(recipe, config)
    except UserMistake:
        return None
    if compression is None or "group_size" not in compression.arguments:
        return linear * (1 + ROW_BYTES / config.hidden_size)
    zero_point = recipe.weight_bits / 8
    return linear * (recipe.weight_bits / 8 + (SCALE_BYTES + zero_point) / int(compression.arguments["group_size"]))


def weight_bytes(config: ModelConfig, recipe: Recipe) -> int:
    """Bytes of all weights under ``recipe`` on a GPU, as TensorRT-LLM keeps them: what is not quantized in 16 bits,
    embeddings and head apart.
    """
    parameters = count_parameters(config)
    plain = 2 * parameters.embedding + parameters.other
    return round(_linear_bytes(config, recipe, parameters.linear, BUILT_BYTES) + plain * BUILT_BYTES)


def bytes_read_per_step(config: ModelConfig, recipe: Recipe, sequences: int = 1, width: int = BUILT_BYTES) -> int:
    """Weight bytes that one decode step of ``sequences`` sequences reads; ``width``: of a weight as it is, in bytes.

    Dense layers are read once. Of E experts a batch of B tokens that each pick k at random reads
    E·(1 − (1 − k/E)^B) in expectation. Of the input embedding only one row a sequence is read.
    """
    parameters = count_parameters(config)
    linear = parameters.active_linear
    if config.experts is not None:
        share = 1 - (1 - config.experts.active / config.experts.count) ** sequences
        per_expert = sparse_layer_count(config) * 3 * config.hidden_size * config.experts.intermediate_size
        linear += round(per_expert * (config.experts.count * share - config.experts.active))
    head = parameters.head or parameters.embedding
    return round(_linear_bytes(config, recipe, linear, width) + (head + parameters.other) * width)


def _linear_bytes(config: ModelConfig, recipe: Recipe, linear: int, width: int) -> float:
    if recipe.weight_bits >= 16:
        return linear * float(width)
    return linear * (recipe.weight_bits / 8 + scale_bytes_per_weight(config, recipe))


def scale_bytes_per_weight(config: ModelConfig, recipe: Recipe) -> float:
    """Bytes of scales per weight: one scale a group, or one an output channel, or one a tensor."""
    if not recipe.group_sizes:
        return 4 / config.hidden_size if recipe.weight_bits == 8 and not recipe.name.startswith("fp8") else 0.0
    group = group_size_for(recipe, [config.hidden_size, config.intermediate_size]) or min(recipe.group_sizes)
    return (1 if recipe.name == "nvfp4" else SCALE_BYTES) / group


def kv_bytes_per_token(config: ModelConfig, kv_bits: int, *, heads: int | None = None) -> int:
    """Bytes of keys and values that one token adds over all layers: 2·L·m·d·bits/8.

    ``heads`` replaces the number of key/value heads (full multi-head: ``config.num_heads``; multi-query: 1). With
    latent attention a layer keeps one vector for all heads; with ``heads`` it is what so many would keep apart.
    """
    latent = config.latent
    if latent is None:
        features = 2 * (heads or config.num_kv_heads) * config.head_dim
    elif heads is None:
        features = latent.rank + latent.rope_dim
    else:
        features = heads * (latent.nope_dim + latent.rope_dim + latent.value_dim)
    return config.num_layers * features * kv_bits // 8


def kv_bytes_per_sequence(config: ModelConfig, kv_bits: int, length: int, *, heads: int | None = None) -> int:
    """Bytes of a sequence of ``length`` tokens; layers with a sliding window keep only the window."""
    per_layer_token = kv_bytes_per_token(config, kv_bits, heads=heads) // config.num_layers
    window = min(length, config.sliding_window) if config.sliding_window else length
    full_layers = config.num_layers - config.sliding_layers
    return per_layer_token * (full_layers * length + config.sliding_layers * window)


def attention_operations(config: ModelConfig, length: int) -> int:
    """Operations of one token's attention over ``length`` tokens in all layers: 4·L·n·d·length; latent attention
    multiplies with the latent vectors themselves.
    """
    latent = config.latent
    features = 2 * config.head_dim if latent is None else 2 * latent.rank + latent.rope_dim
    return 2 * config.num_layers * config.num_heads * features * length
