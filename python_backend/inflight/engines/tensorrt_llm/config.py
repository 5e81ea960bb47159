"""TensorRT-LLM's ExecutorConfig out of our options. Every default that differs between its layers is set explicitly."""

from __future__ import annotations

import datetime
import logging
from pathlib import Path
from typing import Any

from inflight.engines.tensorrt_llm.option_checks import MODE_OF_ENGINE
from inflight.engines.tensorrt_llm.options import (
    DECODING_MODES,
    POLICIES,
    TensorRtLlmOptions,
    lookahead_sizes,
    parse_choices,
)
from inflight.engines.tensorrt_llm.probe import EngineFacts, first_line
from inflight.errors import LoadError
from inflight.model.files import stop_token_ids

log = logging.getLogger("inflight.engine_worker")


def accepts(bound: Any, name: str) -> bool:
    """Whether a class of the bindings has a property of that name: how newer fields are found."""
    return hasattr(bound, name)


def reuse_enabled(options: TensorRtLlmOptions, facts: EngineFacts) -> bool:
    """Unset means: wherever the engine can."""
    return facts.can_reuse if options.enable_kv_cache_reuse is None else options.enable_kv_cache_reuse


def executor_config(trtllm: Any, options: TensorRtLlmOptions, facts: EngineFacts, guided: Any) -> Any:
    """The whole configuration; `guided` is a GuidedDecodingConfig or None. Raises `LoadError` with what the library
    says against a value.
    """
    try:
        return _executor_config(trtllm, options, facts, guided)
    except (RuntimeError, TypeError, ValueError) as error:
        raise LoadError(
            f"TensorRT-LLM does not take the model's parameters ({first_line(error)}); look at engine_options and at "
            "what config.pbtxt sets."
        ) from None


def _executor_config(trtllm: Any, options: TensorRtLlmOptions, facts: EngineFacts, guided: Any) -> Any:
    kv_cache = trtllm.KvCacheConfig(
        **_given(
            enable_block_reuse=reuse_enabled(options, facts),
            max_tokens=options.max_tokens_in_paged_kv_cache,
            max_attention_window=options.max_attention_window_size or facts.windows,
            sink_token_length=options.sink_token_length,
            free_gpu_memory_fraction=options.kv_cache_free_gpu_mem_fraction,
            host_cache_size=options.kv_cache_host_memory_bytes,
            onboard_blocks=options.kv_cache_onboard_blocks if accepts(trtllm.KvCacheConfig, "onboard_blocks") else None,
        )
    )
    scheduler = trtllm.SchedulerConfig(
        capacity_scheduler_policy=getattr(trtllm.CapacitySchedulerPolicy, POLICIES[options.batch_scheduler_policy])
    )
    # The constructor takes two of the four; the others are properties.
    knobs = trtllm.ExtendedRuntimePerfKnobConfig(
        multi_block_mode=options.multi_block_mode, enable_context_fmha_fp32_acc=options.enable_context_fmha_fp32_acc
    )
    knobs.cuda_graph_mode = options.cuda_graph_mode
    knobs.cuda_graph_cache_size = options.cuda_graph_cache_size
    return trtllm.ExecutorConfig(
        **_given(
            max_beam_width=options.max_beam_width,
            scheduler_config=scheduler,
            kv_cache_config=kv_cache,
            enable_chunked_context=options.enable_chunked_context,
            normalize_log_probs=options.normalize_log_probs,
            iter_stats_max_iterations=options.iter_stats_max_iterations,
            request_stats_max_iterations=options.request_stats_max_iterations,
            batching_type=trtllm.BatchingType.INFLIGHT,
            max_batch_size=options.max_batch_size or None,
            max_num_tokens=options.max_num_tokens or None,
            parallel_config=_parallel(trtllm, options, facts),
            peft_cache_config=_peft(trtllm, options),
            decoding_config=_decoding(trtllm, options, facts),
            gpu_weights_percent=options.gpu_weights_percent,
            extended_runtime_perf_knob_config=knobs,
            recv_poll_period_ms=options.recv_poll_period_ms,
            guided_decoding_config=guided,
        )
    )


def _given(**values: Any) -> dict[str, Any]:
    """Without the Nones: the bindings refuse None wherever a plain value is meant."""
    return {name: value for name, value in values.items() if value is not None}


def _parallel(trtllm: Any, options: TensorRtLlmOptions, facts: EngineFacts) -> Any:
    if facts.world_size == 1 and options.gpu_device_ids is None:
        return None
    return trtllm.ParallelConfig(
        **_given(
            communication_type=trtllm.CommunicationType.MPI,
            communication_mode=trtllm.CommunicationMode.LEADER,
            device_ids=options.gpu_device_ids,
            participant_ids=options.participant_ids,
            num_nodes=options.num_nodes if options.num_nodes > 1 else None,
        )
    )


def _peft(trtllm: Any, options: TensorRtLlmOptions) -> Any:
    return trtllm.PeftCacheConfig(
        **_given(
            optimal_adapter_size=options.lora_cache_optimal_adapter_size,
            max_adapter_size=options.lora_cache_max_adapter_size,
            device_cache_percent=options.lora_cache_gpu_memory_fraction,
            host_cache_size=options.lora_cache_host_memory_bytes,
            lora_prefetch_dir=options.lora_prefetch_dir or None,
        )
    )


def _decoding(trtllm: Any, options: TensorRtLlmOptions, facts: EngineFacts) -> Any:
    """The decoding mode: as told, else as the engine was built for, else TensorRT-LLM's own choice."""
    mode = options.decoding_mode or MODE_OF_ENGINE.get(facts.speculative_mode, "")
    if not mode:
        return None
    lookahead = eagle = medusa = None
    if mode == "lookahead":  # without one the engine would load and every step of it fail
        window, ngram, guesses = lookahead_sizes(options)
        lookahead = trtllm.LookaheadDecodingConfig(
            max_window_size=window, max_ngram_size=ngram, max_verification_set_size=guesses
        )
    if options.medusa_choices:
        medusa = parse_choices("medusa_choices", options.medusa_choices)
    if options.eagle_choices:
        eagle = trtllm.EagleConfig(eagle_choices=parse_choices("eagle_choices", options.eagle_choices))
    return trtllm.DecodingConfig(
        **_given(
            decoding_mode=getattr(trtllm.DecodingMode, DECODING_MODES[mode])(),
            lookahead_decoding_config=lookahead,
            medusa_choices=medusa,
            eagle_config=eagle,
        )
    )


def guided_config(trtllm: Any, options: TensorRtLlmOptions, folder: str, speculative: bool) -> Any:
    """GuidedDecodingConfig, or None where guided decoding is off or not to be had."""
    if options.guided_decoding_backend == "none" or speculative or not hasattr(trtllm, "GuidedDecodingConfig"):
        return None
    try:
        from tensorrt_llm.llmapi.tokenizer import TransformersTokenizer, _xgrammar_tokenizer_info

        tokenizer = TransformersTokenizer.from_pretrained(options.tokenizer_dir or folder)
        facts = _xgrammar_tokenizer_info(tokenizer)
        facts["stop_token_ids"] = _ends(facts.get("stop_token_ids"), Path(folder))
    except Exception as error:  # noqa: BLE001 — any trouble in there only costs guided decoding
        if options.tokenizer_dir:
            raise LoadError(f"the tokenizer in tokenizer_dir cannot be read ({first_line(error)}).") from None
        log.warning("guided decoding is off: the tokenizer's facts cannot be had (%s)", first_line(error))
        return None
    return trtllm.GuidedDecodingConfig(backend=trtllm.GuidedDecodingConfig.GuidedDecodingBackend.XGRAMMAR, **facts)


def _ends(told: Any, folder: Path) -> list[int]:
    """What may end a guided text: the tokenizer's end token, if it has one, and the model's. Raises `ValueError`."""
    given = [int(token) for token in told or () if token is not None]
    found = list(dict.fromkeys([*given, *stop_token_ids(folder, 1 << 31)]))
    if not found:
        raise ValueError("neither the tokenizer nor the engine directory says which token ends a text")
    return found


def retention_config(trtllm: Any, options: TensorRtLlmOptions) -> Any:
    """How long prompts stay in the KV cache; None is TensorRT-LLM's own least-recently-used order."""
    if options.prompt_retention_priority is None:
        return None
    if not 0 <= options.prompt_retention_priority <= 100:
        raise LoadError("engine_options: prompt_retention_priority must be between 0 and 100.")
    config = trtllm.KvCacheRetentionConfig
    duration = datetime.timedelta(seconds=options.prompt_retention_s) if options.prompt_retention_s > 0 else None
    whole = config.TokenRangeRetentionConfig(
        **_given(token_start=0, priority=options.prompt_retention_priority, duration_ms=duration), token_end=None
    )
    values: dict[str, Any] = {"token_range_retention_configs": [whole]}
    if hasattr(trtllm, "KvCacheTransferMode"):
        # The binding's default for the folder is None, which its own type does not take.
        values |= {"transfer_mode": trtllm.KvCacheTransferMode.DRAM, "directory": ""}
    return config(**values)
