"""One vocabulary of quantizations over all targets, and what each target can do with it.

A recipe name says what happens to weights (and activations); the KV cache is chosen apart from it. What a target
cannot do is refused with what it can.
"""

from __future__ import annotations

from dataclasses import dataclass

from build_engine.architectures import HF_QUANTIZED, OPENVINO, TENSORRT_LLM
from build_engine.errors import UserMistake


@dataclass(frozen=True, slots=True)
class Recipe:
    """``weight_bits`` counts the linear layers' weights without scales; ``group_sizes`` are tried largest first."""

    name: str
    summary: str
    weight_bits: float
    activation_bits: int
    calibrated: bool
    group_sizes: tuple[int, ...] = ()


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("none", "weights as they are", 16, 16, False),
        Recipe("int8", "8-bit integer weights, per output channel", 8, 16, False),
        Recipe("int8-sq", "SmoothQuant: 8-bit integer weights and activations", 8, 8, True),
        Recipe("int4", "4-bit integer weights, without calibration", 4, 16, False, (128, 64, 32)),
        Recipe("int4-awq", "4-bit integer weights, scaled by activation (AWQ)", 4, 16, True, (128, 64)),
        Recipe("int4-gptq", "4-bit integer weights, error-corrected (GPTQ)", 4, 16, True, (128, 64)),
        Recipe("w4a8-awq", "AWQ weights with 8-bit floating-point activations", 4, 8, True, (128, 64)),
        Recipe("fp8", "8-bit floating-point weights and activations", 8, 8, True),
        Recipe("nvfp4", "4-bit floating-point weights and activations, blocks of 16", 4, 4, True, (16,)),
    )
}

SMOOTHED_CHECKPOINTS = ("llama", "mistral", "qwen2", "qwen3")
"""Those that int8-sq is written for as a checkpoint; OpenVINO's engines take all of `folds.FOLDS`."""

KV_CACHES = ("auto", "fp8", "int8", "none")
"""``auto`` is the target's best default; ``none`` keeps the KV cache in the model's own precision."""

BY_TARGET: dict[str, tuple[str, ...]] = {
    OPENVINO: ("none", "int8", "int8-sq", "int4", "int4-awq", "int4-gptq"),
    TENSORRT_LLM: ("none", "int8", "int8-sq", "int4", "int4-awq", "w4a8-awq", "fp8"),
    HF_QUANTIZED: ("none", "int8-sq", "int4-awq", "w4a8-awq", "fp8", "nvfp4"),
}

KV_BY_TARGET: dict[str, tuple[str, ...]] = {
    OPENVINO: ("auto", "int8", "none"),
    TENSORRT_LLM: ("auto", "fp8", "int8", "none"),
    HF_QUANTIZED: ("auto", "fp8", "none"),
}


def recipe_for(name: str, target: str) -> Recipe:
    """The recipe, or `UserMistake` naming what ``target`` can do."""
    able = BY_TARGET[target]
    if name not in able:
        raise UserMistake(f"--quantization {name} cannot be built for {target}, which takes: {', '.join(able)}")
    return RECIPES[name]


def kv_cache_for(name: str, target: str, recipe: Recipe) -> str:
    """Resolve ``auto`` and refuse what the target cannot do; returns fp8, int8 or none."""
    able = KV_BY_TARGET[target]
    if name not in able:
        raise UserMistake(f"--kv-cache {name} cannot be served by {target}, which takes: {', '.join(able)}")
    if name != "auto":
        return name
    if target == OPENVINO:
        return "int8"
    return "fp8" if recipe.name in ("fp8", "nvfp4", "w4a8-awq") else "none"


def group_size_for(recipe: Recipe, in_features: list[int]) -> int | None:
    """The largest group size that divides every input width; None when none does or the recipe has no groups."""
    for size in recipe.group_sizes:
        if all(width % size == 0 for width in in_features):
            return size
    return None
