"""Up to which length OpenVINO's graph of a model with LongRoPE is right.

The graph picks the rotary factors anew in every step, by how long the longest sequence in it is, and keeps the keys of
before: past the border a sequence has keys of both kinds. Engines that are built today end there (`build_engine` says
the same of the source); those that were built before have a longer limit in their manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PHI3_ORIGINAL_LENGTH = 4096


def switching_length(config: Mapping[str, Any]) -> int | None:
    """The border in tokens for a checkpoint's config.json; None where the model has one set of factors only."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(scaling, Mapping) and isinstance(scaling.get("full_attention"), Mapping):
        scaling = scaling["full_attention"]
    if not isinstance(scaling, Mapping):
        return None
    phi3 = config.get("model_type") == "phi3"
    kinds = ("longrope", "su", "yarn") if phi3 else ("longrope", "su")  # as transformers' Phi3Config reads them
    if (scaling.get("rope_type") or scaling.get("type")) not in kinds:
        return None
    for place in (config, scaling):
        original = place.get("original_max_position_embeddings")
        if isinstance(original, int) and not isinstance(original, bool):
            return original
    longest = config.get("max_position_embeddings")
    return PHI3_ORIGINAL_LENGTH if phi3 else longest if isinstance(longest, int) else None
