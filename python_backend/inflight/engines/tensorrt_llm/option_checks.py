"""What the model's parameters ask of a compiled engine and it cannot have, known before it is loaded.

TensorRT-LLM itself refuses some of it from C++, switches some off with a warning, and fails in every step with others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from inflight.engines.tensorrt_llm.limits import context_of
from inflight.engines.tensorrt_llm.options import (
    LOOKAHEAD_OPTIONS,
    SPECULATIVE_MODES,
    TensorRtLlmOptions,
    lookahead_drafts,
    lookahead_sizes,
)
from inflight.engines.tensorrt_llm.probe import EngineFacts

log = logging.getLogger("inflight.engine_worker")

MODE_OF_ENGINE = {
    "medusa": "medusa",
    "lookahead_decoding": "lookahead",
    "explicit_draft_tokens": "redrafter",
    "eagle": "eagle",
}


def option_problems(facts: EngineFacts, options: TensorRtLlmOptions) -> Iterator[str]:
    """One sentence for each option that this engine cannot have."""
    beams = facts.limit("max_beam_width")
    if options.max_beam_width > beams:
        yield (
            f"model parameter max_beam_width is {options.max_beam_width} and the engine was built for {beams}; lower "
            "it or rebuild with --max-beam-width."
        )
    yield from _cache_problems(facts, options)
    if options.gpu_weights_percent < 1 and not facts.build.get("weight_streaming"):
        yield (
            f"model parameter gpu_weights_percent is {options.gpu_weights_percent:g} and the engine keeps all its "
            "weights on the GPU; leave it out or compile again with trtllm-build --weight_streaming."
        )
    built_for = {name: facts.limit(name) for name in ("max_batch_size", "max_num_tokens")}
    for name, limit in {**built_for, "max_seq_len": context_of(facts)}.items():
        value = getattr(options, name)
        if value > limit:
            yield f"engine_options: {name} is {value} and the engine was built for {limit}; lower it."
    if options.participant_ids is not None and len(options.participant_ids) != facts.world_size:
        yield (
            f"model parameter participant_ids names {len(options.participant_ids)} ranks and the engine has "
            f"{facts.world_size}; name as many, or leave it out."
        )
    mode = facts.speculative_mode
    built = MODE_OF_ENGINE.get(mode, "")
    if options.decoding_mode in SPECULATIVE_MODES and options.decoding_mode != built:
        yield (
            f"model parameter decoding_mode is {options.decoding_mode} and the engine was built for "
            f"{built or 'none'}; set it so, or rebuild with --speculative."
        )
    if mode == "lookahead_decoding":
        yield from _lookahead_problems(facts, options)
    if mode != "none" and options.max_beam_width > 1:
        yield (
            f"model parameter max_beam_width is {options.max_beam_width} and the engine was built for speculative "
            f"decoding ({mode}), which works without beams only; set it to 1."
        )
    if (options.draft_engine_dir != "") != (mode == "draft_tokens_external"):
        if options.draft_engine_dir:
            yield (
                "draft_engine_dir needs an engine compiled with trtllm-build --speculative_decoding_mode "
                "draft_tokens_external; compile it so, or remove draft_engine_dir."
            )
        else:
            log.info("the engine can verify drafts; set draft_engine_dir to a smaller model's engine to use that")
    adapters = "lora_dir" if options.lora_dir else "lora_prefetch_dir"
    if (options.lora_dir or options.lora_prefetch_dir) and facts.plugins.get("lora_plugin") in (None, False, "disable"):
        yield (
            f"model parameter {adapters} is set and the engine was built without lora_plugin; remove it or compile "
            "again with trtllm-build --lora_plugin auto."
        )


def _cache_problems(facts: EngineFacts, options: TensorRtLlmOptions) -> Iterator[str]:
    """What of the KV cache is asked for and cannot be."""
    for name, wanted, able in (
        ("enable_kv_cache_reuse", options.enable_kv_cache_reuse, facts.can_reuse),
        ("enable_chunked_context", options.enable_chunked_context, facts.paged_context),
    ):
        if wanted and not able:
            yield f"model parameter {name} cannot be true: {_why_not_paged(facts)}."
    if facts.speculative_mode == "draft_tokens_external":
        if not facts.can_reuse:
            yield f"the engine verifies drafts, which needs KV reuse, and {_why_not_paged(facts)}."
        elif options.enable_kv_cache_reuse is False:
            yield (
                "model parameter enable_kv_cache_reuse is false and the engine verifies drafts, which needs KV reuse; "
                "leave it out."
            )
    if facts.paged_context and not options.kv_cache_onboard_blocks:
        yield (
            "model parameter kv_cache_onboard_blocks is false and the engine reads its KV cache block by block "
            "(use_paged_context_fmha), from the GPU alone; leave it out."
        )
    if facts.paged_context and options.sink_token_length:
        yield (
            "model parameter sink_token_length needs an engine without use_paged_context_fmha; leave it out or compile "
            "again with trtllm-build --use_paged_context_fmha disable."
        )


def _why_not_paged(facts: EngineFacts) -> str:
    """Why the engine has no KV reuse, and what to do: words after "cannot be true:"."""
    algo = str((facts.pretrained.get("quantization") or {}).get("quant_algo") or "no quantization")
    if facts.paged_context:
        return (
            "the engine was built with gather_context_logits, which needs whole prompts; leave it out or build without"
        )
    if facts.kv_kind and not (facts.kv_kind == "FP8" and algo in ("FP8", "W4A8_AWQ", "NVFP4")):
        return (
            f"TensorRT-LLM builds no paged-context attention for an {facts.kv_kind} KV cache with {algo}; leave it out "
            "or build again with --kv-cache none"
        )
    return (
        "the engine was built without use_paged_context_fmha; leave it out or compile again with trtllm-build "
        "--use_paged_context_fmha enable"
    )


def _lookahead_problems(facts: EngineFacts, options: TensorRtLlmOptions) -> Iterator[str]:
    sizes, built = lookahead_sizes(options), int(facts.build.get("max_draft_len") or 0)
    shown = ", ".join(f"{name} {size}" for name, size in zip(LOOKAHEAD_OPTIONS, sizes, strict=True))
    drafts = lookahead_drafts(sizes)
    if drafts > built:
        yield (
            f"lookahead decoding with {shown} drafts {drafts} tokens and the engine was built for {built} "
            f"(max_draft_len); set smaller sizes, or rebuild with --max-draft-len {drafts}."
        )
