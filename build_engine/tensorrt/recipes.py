"""How each recipe is carried out for TensorRT-LLM. No heavy imports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from build_engine.errors import UserMistake
from build_engine.hf_config import ModelConfig
from build_engine.planning.roofline import Parallel
from build_engine.quantization import Recipe


@dataclass(frozen=True, slots=True)
class TensorRtRecipe:
    """``preset`` is ModelOpt's configuration (None: nothing is calibrated); ``algo`` is TensorRT-LLM's name.

    With ``at_load`` the checkpoint keeps plain weights and TensorRT-LLM quantizes them while it compiles.
    """

    preset: str | None
    algo: str | None
    at_load: bool = False


RECIPES: dict[str, TensorRtRecipe] = {
    "none": TensorRtRecipe(None, None),
    "int8": TensorRtRecipe(None, "W8A16", at_load=True),
    "int4": TensorRtRecipe(None, "W4A16", at_load=True),
    "int8-sq": TensorRtRecipe("INT8_SMOOTHQUANT_CFG", "W8A8_SQ_PER_CHANNEL"),
    "int4-awq": TensorRtRecipe("INT4_AWQ_CFG", "W4A16_AWQ"),
    "w4a8-awq": TensorRtRecipe("W4A8_AWQ_BETA_CFG", "W4A8_AWQ"),
    "fp8": TensorRtRecipe("FP8_DEFAULT_CFG", "FP8"),
    "nvfp4": TensorRtRecipe("NVFP4_DEFAULT_CFG", "NVFP4"),
}

KV_ALGOS = {"fp8": "FP8", "int8": "INT8", "none": None}
ROPE_SCALINGS = ("linear", "llama3", "yarn")
"""Scalings that TensorRT-LLM has and that the reader reproduces."""

MOE_RECIPES = ("none", "fp8", "int4-awq")


def check_model(config: ModelConfig, recipe: Recipe, parallel: Parallel) -> None:
    """Refuse what TensorRT-LLM or its exporter cannot do with this model; raises `UserMistake`."""
    scaling = config.rope_scaling
    if scaling is not None and scaling["rope_type"] not in ROPE_SCALINGS:
        raise UserMistake(
            f"rope scaling {scaling['rope_type']} is not supported for tensorrt-llm, which takes: "
            f"{', '.join(ROPE_SCALINGS)}"
        )
    if scaling is not None and scaling["rope_type"] == "yarn":
        check_yarn(scaling)
    if config.num_layers % parallel.pipeline:
        raise UserMistake(
            f"--pipeline-parallel {parallel.pipeline} does not divide the model's {config.num_layers} layers"
        )
    if config.intermediate_size % parallel.tensor:
        raise UserMistake(
            f"--tensor-parallel {parallel.tensor} does not divide the model's MLP width of {config.intermediate_size}"
        )
    if config.experts is not None and recipe.name not in MOE_RECIPES:
        raise UserMistake(
            f"--quantization {recipe.name} is not supported for mixtures of experts, "
            f"which take: {', '.join(MOE_RECIPES)}"
        )


def check_yarn(scaling: Mapping[str, Any]) -> None:
    """TensorRT-LLM computes YaRN's factor on attention from ``factor`` alone, and rounds where its ramp begins."""
    factor = float(scaling["factor"])
    wanted = yarn_attention(factor)
    given = scaling.get("attention_factor")
    if given is None and scaling.get("mscale") and scaling.get("mscale_all_dim"):
        given = yarn_attention(factor, scaling["mscale"]) / yarn_attention(factor, scaling["mscale_all_dim"])
    if given is not None and abs(float(given) - wanted) > 1e-4:
        raise UserMistake(
            f"this model's YaRN multiplies attention by {float(given):.4f} (attention_factor, or mscale and "
            f"mscale_all_dim), and TensorRT-LLM always by 0.1 ln({factor:g}) + 1 = {wanted:.4f}: its engine would "
            "answer wrongly; build for hf-quantized instead"
        )
    if scaling.get("truncate") is False:
        raise UserMistake(
            "this model's YaRN does not round its ramp (truncate: false), and TensorRT-LLM does: its engine would "
            "answer wrongly; build for hf-quantized instead"
        )


def yarn_attention(factor: float, scale: float = 1.0) -> float:
    """The factor on cosine and sine that YaRN's paper gives (Peng et al. 2023, section 3.4)."""
    return 0.1 * float(scale) * math.log(factor) + 1.0 if factor > 1 else 1.0


def group_size(config: ModelConfig, recipe: Recipe, parallel: Parallel) -> int | None:
    """The largest group size that TensorRT-LLM's kernels have and that divides every rank's input widths."""
    if not recipe.group_sizes or RECIPES[recipe.name].at_load:
        return None
    experts = config.experts
    widths = [
        config.hidden_size,
        config.num_heads * config.head_dim // parallel.tensor,
        (config.intermediate_size if experts is None else experts.intermediate_size) // parallel.tensor,
    ]
    if experts is not None and experts.shared_intermediate_size:
        widths.append(experts.shared_intermediate_size // parallel.tensor)
    for size in recipe.group_sizes:
        if all(width % size == 0 for width in widths):
            return size
    sizes = " or ".join(str(size) for size in recipe.group_sizes)
    raise UserMistake(
        f"--quantization {recipe.name} needs groups of {sizes} and the widths of a rank are "
        f"{', '.join(str(width) for width in sorted(set(widths)))}: use another recipe or fewer ranks"
    )
