"""How much a model computes for a token, by its config.json, and how long a step may take on a processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inflight.model.files import count_of

# Operations a second and core that any processor worth serving on reaches in prompts: a ninth of what two shared
# cores of a Zen 3 without 8-bit products did on the slowest day that was measured. Attention takes part of the rest.
SLOWEST = 5e9


def operations_per_token(config: Mapping[str, Any]) -> int:
    """Of a prompt, about: two for each weight of the layers that a token meets; attention and logits do not count.

    `config` is a checkpoint's config.json. What is odd in it where only this sum needs it counts as not said. Raises
    `LoadError` for the counts that an engine needs.
    """
    hidden = count_of(config, "hidden_size")
    heads = count_of(config, "num_attention_heads")
    kv_heads = count_of(config, "num_key_value_heads", heads)
    head_size = _said(config, "head_dim", max(hidden // heads, 1))
    attention = 2 * hidden * head_size * (heads + kv_heads)
    inner = _said(config, "moe_intermediate_size", _said(config, "intermediate_size", 4 * hidden))
    experts = _said(config, "num_experts_per_tok", 1)
    return 2 * count_of(config, "num_hidden_layers") * (attention + 3 * hidden * inner * experts)


def _said(config: Mapping[str, Any], name: str, default: int) -> int:
    """A count that may be missing, 0 (no experts, say) or a list of one for each layer."""
    value = config.get(name)
    if isinstance(value, list) and value:
        value = max(value, key=lambda each: each if isinstance(each, int) else 0)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default


def longest_step_s(config: Mapping[str, Any], tokens: int, cores: int) -> float:
    """Seconds that a step of so many tokens takes at the very most where a processor computes it: longer is a stall.

    `config` is a checkpoint's config.json. Raises `LoadError` as `operations_per_token`.
    """
    return tokens * operations_per_token(config) / (cores * SLOWEST)
