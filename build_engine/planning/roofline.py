"""What fits into a GPU's memory and how fast it can decode at most.

The decode roofline (Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009, applied to one decode step as in
Pope et al., "Efficiently Scaling Transformer Inference", 2022): a step of B sequences of length s reads W bytes of
weights and B·s·K bytes of keys and values and computes B·(2·P + 4·L·n·d·s) operations, so it takes at least

    max((W + B·s·K) / bandwidth,  B·(2·P + 4·L·n·d·s) / rate)

with P the active parameters. The batch where both sides meet is where decoding turns compute-bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from build_engine.hf_config import ModelConfig
from build_engine.planning import model_size
from build_engine.planning.gpus import Gpu
from build_engine.quantization import Recipe

USABLE_MEMORY = 0.90
"""Share of memory left after the CUDA context and fragmentation; TensorRT-LLM's own default for its KV pool."""

ACTIVATION_TENSORS = 4
"""Live activation tensors of the widest layer during a step (input, two MLP products, output): an estimate."""


@dataclass(frozen=True, slots=True)
class Parallel:
    tensor: int = 1
    pipeline: int = 1

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline


@dataclass(frozen=True, slots=True)
class Fit:
    """What one replica holds; bytes are per GPU of the fullest rank."""

    weight_bytes: int
    activation_bytes: int
    kv_pool_bytes: int
    kv_bytes_per_token: int
    tokens: int
    sequences: int


@dataclass(frozen=True, slots=True)
class Decode:
    """The roofline at one batch size; rates are upper bounds in tokens per second."""

    batch: int
    bytes_read: int
    memory_seconds: float
    compute_seconds: float

    @property
    def seconds(self) -> float:
        return max(self.memory_seconds, self.compute_seconds)

    @property
    def tokens_per_second(self) -> float:
        return self.batch / self.seconds


def kv_heads_per_gpu(config: ModelConfig, tensor: int) -> int:
    """Key/value heads a rank stores; with fewer heads than ranks each is stored more than once."""
    return max(1, math.ceil(config.num_kv_heads / tensor))


def heads_of_rank(config: ModelConfig, tensor: int) -> int | None:
    """`kv_heads_per_gpu`; None with latent attention, whose one vector every rank stores whole."""
    return None if config.latent is not None else kv_heads_per_gpu(config, tensor)


def duplication(config: ModelConfig, tensor: int) -> float:
    """How many times keys and values are stored over all tensor ranks together."""
    heads = heads_of_rank(config, tensor)
    return float(tensor) if heads is None else heads * tensor / config.num_kv_heads


def fit(
    config: ModelConfig, recipe: Recipe, kv_bits: int, gpu: Gpu, parallel: Parallel, length: int, max_num_tokens: int
) -> Fit:
    """Divide the GPU's usable memory into weights, activations and the KV pool."""
    weights = math.ceil(model_size.weight_bytes(config, recipe) / parallel.gpus)
    widest = max(config.intermediate_size, config.vocab_size // max(1, max_num_tokens // 64)) // parallel.tensor
    activations = ACTIVATION_TENSORS * max_num_tokens * max(widest, config.hidden_size) * 2
    pool = max(0, round(gpu.memory_bytes * USABLE_MEMORY) - weights - activations)
    layers_share = math.ceil(config.num_layers / parallel.pipeline) / config.num_layers
    heads = heads_of_rank(config, parallel.tensor)
    per_token = math.ceil(model_size.kv_bytes_per_token(config, kv_bits, heads=heads) * layers_share)
    per_sequence = model_size.kv_bytes_per_sequence(config, kv_bits, length, heads=heads) * layers_share
    return Fit(weights, activations, pool, per_token, pool // per_token, int(pool // per_sequence))


def decode(
    config: ModelConfig, recipe: Recipe, kv_bits: int, gpu: Gpu, parallel: Parallel, length: int, batch: int
) -> Decode | None:
    """The roofline of one decode step; None when the GPU lacks the arithmetic of ``recipe``.

    Tensor parallelism divides bytes and operations over its GPUs; pipeline parallelism does not shorten a step.
    Communication is left out, so this is a bound and no prediction.
    """
    rate = gpu.flops(recipe)
    if rate is None:
        return None
    weights = model_size.bytes_read_per_step(config, recipe, batch)
    copies = duplication(config, parallel.tensor)
    kv = round(batch * model_size.kv_bytes_per_sequence(config, kv_bits, length) * copies)
    parameters = model_size.count_parameters(config)
    operations = batch * (2 * parameters.active + model_size.attention_operations(config, length))
    memory_seconds = (weights + kv) / (gpu.bandwidth * parallel.tensor)
    return Decode(batch, weights + kv, memory_seconds, operations / (rate * parallel.tensor))


def compute_bound_batch(
    config: ModelConfig, recipe: Recipe, kv_bits: int, gpu: Gpu, parallel: Parallel, length: int, limit: int = 1 << 20
) -> int | None:
    """The smallest batch whose step is limited by arithmetic, found by bisection; None when keys and values keep it
    memory-bound at every batch size.
    """

    def bound(batch: int) -> bool:
        step = decode(config, recipe, kv_bits, gpu, parallel, length, batch)
        return step is not None and step.compute_seconds >= step.memory_seconds

    if not bound(limit):
        return None
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if bound(middle) else (middle, high)
    return high
