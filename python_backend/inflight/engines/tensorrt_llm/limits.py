"""What a compiled engine holds at run time, computed as TensorRT-LLM computes it.

Its config.json says what was built; what a request may have follows from that and from the options (trtGptModel.h at
2e2327b9, llmRequest.cpp at 119c6e60, builder.py 205252225).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from inflight.engines.tensorrt_llm.options import TensorRtLlmOptions
from inflight.engines.tensorrt_llm.probe import EngineFacts, Gpu

WORKSPACE = 1.05  # engines need a little more than their weights before any KV block


@dataclasses.dataclass(frozen=True, slots=True)
class PromptLimit:
    """Tokens of the longest prompt, and why no more, as a client reads it; and what TensorRT-LLM itself would hold."""

    tokens: int
    reason: str
    held: int


def context_of(facts: EngineFacts) -> int:
    """Tokens of a prompt and its answer. The builder adds to max_seq_len what drafts need, and every request leaves
    that room free.
    """
    context = facts.limit("max_seq_len")
    if facts.speculative_mode == "none":
        return context
    context -= int(facts.build.get("max_draft_len") or 0)
    return context - (int(facts.pretrained.get("num_eagle_layers") or 0) if facts.speculative_mode == "eagle" else 0)


def prompt_limit(facts: EngineFacts, options: TensorRtLlmOptions) -> PromptLimit:
    """With packed inputs and fused context attention max_input_len means nothing to TensorRT-LLM: a step's tokens do,
    and with prompts in chunks not even those. What whoever built the engine asked for, its manifest says.
    """
    limits = [(context_of(facts) - 1, "max_seq_len")]
    if not (options.enable_chunked_context and facts.paged_context):
        if facts.plugins.get("context_fmha", True) and facts.plugins.get("remove_input_padding", True):
            limits.append((step_tokens(facts, options), "max_num_tokens, as enable_chunked_context is not set"))
        else:
            limits.append((facts.limit("max_input_len"), "max_input_len"))
    held, _ = min(limits)
    if facts.longest_asked is not None:
        limits.append((facts.longest_asked, "the max_input_len of its build"))
    return PromptLimit(*min(limits, key=lambda limit: limit[0]), held)


def step_tokens(facts: EngineFacts, options: TensorRtLlmOptions) -> int:
    """Tokens of one iteration."""
    built = facts.limit("max_num_tokens")
    return min(built, options.max_num_tokens) if options.max_num_tokens else built


def shares_of_memory(
    large: EngineFacts, small: EngineFacts, fraction: float, gpus: Sequence[Gpu] | None
) -> tuple[float, float]:
    """The fractions of free memory that the KV caches of a pair take, the large engine's first, which loads first.

    Both hold the same tokens, so the caches get shares by their bytes per token. Without a look at the GPU the small
    engine's weights have to fit into its share of the cache.
    """
    share = _bytes_per_token(small) / (_bytes_per_token(small) + _bytes_per_token(large))
    if gpus:
        weights = [sum(each.ranks.values()) * WORKSPACE for each in (large, small)]
        free = gpus[0].free_bytes - weights[0]
        both = fraction * (free - weights[1])
        if both > 0:
            first = both * (1 - share)
            return first / free, min(fraction, both * share / (free - first - weights[1]))
    return fraction * (1 - share), fraction


def _bytes_per_token(facts: EngineFacts) -> int:
    """Of an engine's KV cache; engines that say nothing of their layers count as equal."""
    layers, heads = (int(facts.pretrained.get(name) or 0) for name in ("num_hidden_layers", "num_attention_heads"))
    heads_kv = int(facts.pretrained.get("num_key_value_heads") or heads)
    size = int(facts.pretrained.get("head_size") or (int(facts.pretrained.get("hidden_size") or 0) // max(1, heads)))
    return max(1, layers * heads_kv * size * (1 if facts.kv_kind else 2))
