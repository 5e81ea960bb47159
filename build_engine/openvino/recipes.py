"""How each quantization recipe is carried out on OpenVINO. No heavy imports: also used for planning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from build_engine.errors import UserMistake
from build_engine.hf_config import ModelConfig
from build_engine.quantization import Recipe, group_size_for


@dataclass(frozen=True, slots=True)
class Compression:
    """Arguments for ``nncf.compress_weights`` and how engine.json names them."""

    algorithm: str
    arguments: dict[str, Any]


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


def compression_for(recipe: Recipe, config: ModelConfig) -> Compression | None:
    """What to do for ``recipe``; None for no compression. `UserMistake` when no group size fits the shapes."""
    if recipe.name == "none":
        return None
    if recipe.name == "int8":
        return Compression("int8_asym, per channel, embeddings included", {"mode": "int8_asym"})
    widths = linear_input_widths(config)
    group = group_size_for(recipe, widths)
    if group is None:
        sizes = ", ".join(str(size) for size in recipe.group_sizes)
        raise UserMistake(
            f"--quantization {recipe.name} needs a group size ({sizes}) that divides the model's widths "
            f"({', '.join(str(width) for width in widths)}), and none does: use int8"
        )
    arguments: dict[str, Any] = {"mode": "int4_asym", "group_size": group, "ratio": 1.0, "all_layers": False}
    return Compression(f"int4_asym, group {group}; embeddings and head int8_asym, per channel", arguments)
