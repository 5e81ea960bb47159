"""Options of the simulated engine for a model on a GPU: the roofline of published figures times an efficiency.

Datasheets say what a GPU could do at best; `Efficiency` says what share of it is assumed to be reached. None of it was
measured on a GPU here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from build_engine import hf_config
from build_engine.architectures import TENSORRT_LLM
from build_engine.errors import UserMistake
from build_engine.hf_config import ModelConfig
from build_engine.planning import model_size, roofline
from build_engine.planning.gpus import Gpu
from build_engine.planning.roofline import Parallel
from build_engine.quantization import RECIPES, Recipe, kv_cache_for
from inflight.engines.simulated.cost import SimulatedOptions
from inflight_tools.common.report import Failure

ARCHITECTURES = Path(__file__).with_name("architectures.json")
BLOCK_SIZE = 32
_KV_BITS = {"fp8": 8, "int8": 8, "none": 16}
_EXPERT_BATCH = 32  # sequences whose experts a step reads; of 8 experts with 2 active these read all


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What share of the datasheet's figures is reached, and what a step costs beside them. Assumed, not measured.

    `memory` and `compute` are shares of bandwidth and arithmetic (and of the links between GPUs: `memory`);
    `overhead_ms` is scheduling and launching one step, `all_reduce_us` the latency of one of the two reductions that
    every layer needs over several GPUs.
    """

    memory: float = 0.7
    compute: float = 0.5
    overhead_ms: float = 0.5
    all_reduce_us: float = 15.0


@dataclass(frozen=True, slots=True)
class Replica:
    """A model as it is deployed once."""

    model: str
    config: ModelConfig
    recipe: Recipe
    gpu: Gpu
    tensor: int
    max_running: int
    chunk_tokens: int

    @property
    def kv_bits(self) -> int:
        """Bits of a key or value: the default that `build_engine` takes for this recipe."""
        return _KV_BITS[kv_cache_for("auto", TENSORRT_LLM, self.recipe)]


def architecture(name: str) -> ModelConfig:
    """A folder with config.json, or a name of architectures.json. Raises `Failure`."""
    if (Path(name) / "config.json").is_file():
        try:
            return hf_config.load(Path(name))
        except UserMistake as error:
            raise Failure(f"{error}.") from None
    models: dict[str, Any] = json.loads(ARCHITECTURES.read_text(encoding="utf-8"))["models"]
    if name.lower() not in models:
        raise Failure(f"{name} is neither a folder with config.json nor one of {', '.join(models)}.")
    return hf_config.parse(models[name.lower()]["config"], where=name)


def recipe_named(name: str) -> Recipe:
    """A quantization by its name in `build_engine`. Raises `Failure`."""
    if name not in RECIPES:
        raise Failure(f"--quantization {name} is not known: use one of {', '.join(RECIPES)}.")
    return RECIPES[name]


def options_for(replica: Replica, efficiency: Efficiency, *, prefix_caching: bool = False) -> SimulatedOptions:
    """The engine's options. Raises `Failure` when the model does not fit or the GPU lacks the arithmetic.

    Weights are read once a step, keys and values once for every token of context; arithmetic is two operations per
    active parameter and token, and 4·L·n·d per pair of tokens (build_engine/planning/roofline.py). A ring reduction of
    b bytes over t GPUs sends 2·b·(t − 1)/t through each link in each direction, twice a layer.
    """
    config, gpu, tensor = replica.config, replica.gpu, replica.tensor
    rate = gpu.flops(replica.recipe)
    if rate is None:
        raise Failure(f"{gpu.name} has no {gpu.arithmetic(replica.recipe)} arithmetic: choose another --quantization.")
    if config.num_heads % tensor:
        raise Failure(f"--tensor-parallel {tensor} does not divide the {config.num_heads} heads of {replica.model}.")
    if tensor > 1 and gpu.link is None:
        raise Failure(f"nothing is known of the link between GPUs of the kind {gpu.name}: use one of the table.")
    length = config.max_position_embeddings
    fit = roofline.fit(config, replica.recipe, replica.kv_bits, gpu, Parallel(tensor), length, replica.chunk_tokens)
    blocks = fit.tokens // BLOCK_SIZE
    if not blocks:
        raise Failure(
            f"{replica.model} with {replica.recipe.name} does not fit into {tensor} × {gpu.name}: "
            "raise --tensor-parallel or quantize further."
        )
    bandwidth = gpu.bandwidth * tensor * efficiency.memory
    operations = rate * tensor * efficiency.compute
    duplicated = roofline.duplication(config, tensor)
    weights = model_size.bytes_read_per_step(config, replica.recipe, _EXPERT_BATCH)
    reductions_us = reduction_us = 0.0
    if tensor > 1 and gpu.link is not None:
        reductions_us = 2 * config.num_layers * efficiency.all_reduce_us
        sent = 2 * (2 * config.num_layers) * config.hidden_size * 2 * (tensor - 1) / tensor
        reduction_us = sent / (gpu.link / 2 * efficiency.memory) * 1e6
    return SimulatedOptions(
        step_ms=weights / bandwidth * 1e3,
        context_ns_per_token=model_size.kv_bytes_per_token(config, replica.kv_bits) * duplicated / bandwidth * 1e9,
        compute_us_per_token=2 * model_size.count_parameters(config).active / operations * 1e6,
        attention_ps_per_pair=4 * config.num_layers * config.num_heads * config.head_dim / operations * 1e12,
        prefill_us_per_token=reduction_us,
        decode_us_per_sequence=reduction_us,
        overhead_ms=efficiency.overhead_ms + reductions_us / 1e3,
        max_seq_len=length,
        max_running=replica.max_running,
        block_size=BLOCK_SIZE,
        blocks=blocks,
        chunk_tokens=replica.chunk_tokens,
        prefix_caching=prefix_caching,
    )


def engine_options(options: SimulatedOptions) -> dict[str, Any]:
    """The same as the model parameter `engine_options`: what differs from the defaults, to three digits."""
    plain = asdict_of(SimulatedOptions())
    return {
        name: float(f"{value:.3g}") if isinstance(value, float) else value
        for name, value in asdict_of(options).items()
        if value != plain[name]
    }


def asdict_of(options: SimulatedOptions) -> dict[str, Any]:
    """Options by name."""
    return {name: getattr(options, name) for name in options.__struct_fields__}


def describe(replica: Replica, efficiency: Efficiency) -> dict[str, Any]:
    """What the figures rest on, for a record."""
    return {
        "model": replica.model,
        "quantization": replica.recipe.name,
        "kv_bits": replica.kv_bits,
        "gpu": replica.gpu.name,
        "gpu_source": replica.gpu.source,
        "tensor_parallel": replica.tensor,
        "max_running": replica.max_running,
        "chunk_tokens": replica.chunk_tokens,
        "assumed_efficiency": asdict(efficiency),
    }
