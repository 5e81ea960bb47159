"""How many tokens one step takes where `max_batched_tokens` does not say.

Prompts are computed in chunks, and whoever is being answered gets no token before the chunk is done: on two cores
without VNNI 512 tokens of a model of 1.17 billion parameters take seven seconds. Larger chunks are a tenth faster at
most (docs/benchmarks/README.md, "The chunk of a prompt"), so a chunk is what takes about `STEP_S`, within bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inflight.model.files import count_of

STEP_S = 0.3
LEAST, MOST = 128, 512  # tokens: with fewer, products of matrices lose a seventh; more gain nothing
ROUND = 32  # tokens of a KV block
PROMPT_ROOM = 64  # tokens for prompts in a step in which `max_running` answers get theirs
# Operations a second and core in prompts, measured: 32-bit numbers with AVX2 (Zen 3), 8-bit ones with VNNI (Zen 5).
WIDE, NARROW = 75e9, 270e9


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


def tokens_per_step(config: Mapping[str, Any], cores: int, integers: bool, max_running: int) -> int:
    """The most tokens of one step on so many cores, `integers` as `processor.multiplies_integers` says."""
    rate = cores * (NARROW if integers else WIDE) / operations_per_token(config)
    tokens = min(max(rate * STEP_S, LEAST), MOST)
    return -(-int(max(tokens, max_running + PROMPT_ROOM)) // ROUND) * ROUND
