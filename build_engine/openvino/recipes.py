"""How each quantization recipe is carried out on OpenVINO. No heavy imports: also used for planning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from build_engine.errors import UserMistake
from build_engine.folds import FOLDS
from build_engine.hf_config import ModelConfig
from build_engine.quantization import Recipe, group_size_for


@dataclass(frozen=True, slots=True)
class Compression:
    """Arguments for ``nncf.compress_weights`` and how engine.json names them."""

    algorithm: str
    arguments: dict[str, Any]
    calibrated: bool = False
    alpha: float | None = None  # of SmoothQuant
    activation_group: int | None = None  # activations that share a scale where they are rounded to 8 bits


ACTIVATION_GROUP = 64
"""Twice OpenVINO's default: steps of 16 and 64 sequences and prefill take 5 to 8 % less time, and smoothing gives back
what it costs in accuracy (docs/recipes.md)."""

DEFAULT_ALPHA = 0.5

NARROW = 1024
"""Below this hidden size data-free 4-bit weights get groups of 32: the scales cost little beside such a model's
embeddings, and larger groups cost a small model too much (SmolLM2-135M, group 64: perplexity +32 %)."""

CALIBRATED = {"int4-awq": {"awq": True, "scale_estimation": True}, "int4-gptq": {"gptq": True}}
"""What nncf is asked for where a recipe sees calibration text. Scale estimation (choosing each group's scale by the
error it makes on the text) goes with AWQ; GPTQ corrects the errors by itself."""


def linear_input_widths(config: ModelConfig) -> list[int]:
    """Input widths of the linear layers that are quantized in groups (attention and MLP, not embeddings)."""
    widths = {config.hidden_size, config.num_heads * config.head_dim}
    if config.experts is None:
        widths.add(config.intermediate_size)
    else:
        widths.add(config.experts.intermediate_size)
        if config.experts.shared_intermediate_size:
            widths.add(config.experts.shared_intermediate_size)
    return sorted(widths)


def compression_for(recipe: Recipe, config: ModelConfig, alpha: float | None = None) -> Compression | None:
    """What to do for ``recipe``; None for no compression. `UserMistake` when the model's shapes or type do not fit it.

    ``alpha`` is SmoothQuant's, for int8-sq (None: the default).
    """
    if recipe.name == "none":
        return None
    if recipe.name == "int8":
        return Compression("int8_asym, per channel, embeddings included", {"mode": "int8_asym"})
    widths = linear_input_widths(config)
    if recipe.name == "int8-sq":
        return _smoothed(config, widths, DEFAULT_ALPHA if alpha is None else alpha)
    group = group_size_for(recipe, widths)
    if config.hidden_size < NARROW and recipe.name == "int4" and all(width % 32 == 0 for width in widths):
        group = 32
    if group is None:
        sizes = ", ".join(str(size) for size in recipe.group_sizes)
        raise UserMistake(
            f"--quantization {recipe.name} needs a group size ({sizes}) that divides the model's widths "
            f"({', '.join(str(width) for width in widths)}), and none does: use int8"
        )
    arguments: dict[str, Any] = {"mode": "int4_asym", "group_size": group, "ratio": 1.0, "all_layers": False}
    arguments.update(CALIBRATED.get(recipe.name, {}))
    methods = " with " + " and ".join(CALIBRATED[recipe.name]) if recipe.name in CALIBRATED else ""
    algorithm = f"int4_asym, group {group}{methods}; embeddings and head int8_asym, per channel"
    return Compression(algorithm, arguments, recipe.calibrated)


def _smoothed(config: ModelConfig, widths: list[int], alpha: float) -> Compression:
    if config.model_type not in FOLDS:
        raise UserMistake(
            f"--quantization int8-sq is built for {', '.join(FOLDS)} here, and this model is "
            f"{config.model_type}: use int8"
        )
    group = ACTIVATION_GROUP if all(width % ACTIVATION_GROUP == 0 for width in widths) else None
    shared = f", activations in groups of {group}" if group else ""
    algorithm = f"SmoothQuant, alpha {alpha:g}; int8_asym, per channel, embeddings included{shared}"
    return Compression(algorithm, {"mode": "int8_asym"}, calibrated=True, alpha=alpha, activation_group=group)
